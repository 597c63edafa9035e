package raftgroup

import (
	"context"
	"fmt"
	"log/slog"
)

// raftPanic is what raft's Panicf becomes: the worker recovers it and
// quarantines the one group.
type raftPanic struct{ text string }

// Error implements error.
func (p raftPanic) Error() string { return "raft: " + p.text }

// raftLogger carries raft's lines. What raft calls Info is ours to tell, once
// and with keys, so it becomes Debug; formatting happens only if somebody reads it.
type raftLogger struct{ log *slog.Logger }

func (l *raftLogger) out(level slog.Level, text func() string) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, text())
	}
}

func (l *raftLogger) print(level slog.Level, v []any) {
	l.out(level, func() string { return fmt.Sprint(v...) })
}

func (l *raftLogger) printf(level slog.Level, format string, v []any) {
	l.out(level, func() string { return fmt.Sprintf(format, v...) })
}

// The methods of raft.Logger.

func (l *raftLogger) Debug(v ...any)                   { l.print(slog.LevelDebug, v) }
func (l *raftLogger) Debugf(format string, v ...any)   { l.printf(slog.LevelDebug, format, v) }
func (l *raftLogger) Info(v ...any)                    { l.print(slog.LevelDebug, v) }
func (l *raftLogger) Infof(format string, v ...any)    { l.printf(slog.LevelDebug, format, v) }
func (l *raftLogger) Warning(v ...any)                 { l.print(slog.LevelDebug, v) }
func (l *raftLogger) Warningf(format string, v ...any) { l.printf(slog.LevelDebug, format, v) }
func (l *raftLogger) Error(v ...any)                   { l.print(slog.LevelWarn, v) }
func (l *raftLogger) Errorf(format string, v ...any)   { l.printf(slog.LevelWarn, format, v) }
func (l *raftLogger) Fatal(v ...any)                   { panic(raftPanic{fmt.Sprint(v...)}) }
func (l *raftLogger) Fatalf(format string, v ...any)   { panic(raftPanic{fmt.Sprintf(format, v...)}) }
func (l *raftLogger) Panic(v ...any)                   { panic(raftPanic{fmt.Sprint(v...)}) }
func (l *raftLogger) Panicf(format string, v ...any)   { panic(raftPanic{fmt.Sprintf(format, v...)}) }
