package recovery

import (
	"fmt"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// Outcome says what becomes of a group.
type Outcome string

// Outcomes.
const (
	// Kept: its state goes on from what was found.
	Kept Outcome = "kept"
	// Lost: nothing of it was found; it begins anew, empty.
	Lost Outcome = "lost"
	// Damaged: something was found and cannot be read; it begins anew, empty.
	Damaged Outcome = "damaged"
)

// Group is one group's row of a Report.
type Group struct {
	Group     string  `json:"group"`
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Outcome   Outcome `json:"outcome"`
	// Replica is the one it was made from, NewReplica the one it becomes.
	Replica    uint64 `json:"replica,omitempty"`
	NewReplica uint64 `json:"new_replica"`
	// FromIndex is the checkpoint's, ToIndex the last entry's that is kept.
	FromIndex uint64 `json:"from_index"`
	ToIndex   uint64 `json:"to_index"`
	// KnownCommit is the highest index that this disk knew to be committed, and
	// Beyond counts the entries kept behind it: some may never have been acknowledged.
	KnownCommit uint64 `json:"known_commit"`
	Beyond      uint64 `json:"entries_beyond_commit"`
	Term        uint64 `json:"term"`
	NewTerm     uint64 `json:"new_term"`
	// LogStart and NextOffset are Kafka's offsets; -1 for what is no topic.
	LogStart   int64 `json:"log_start_offset"`
	NextOffset int64 `json:"next_offset"`
	// Others are the replicas elsewhere, as the group last knew.
	Others []Other `json:"others"`
	// Notes say what is damaged or unusual.
	Notes []string `json:"notes,omitempty"`

	id   ident.GroupID
	conf uint64 // the highest generation of an applied membership change
	kept raftgroup.Kept
}

// Other is a replica on another node.
type Other struct {
	Replica uint64 `json:"replica"`
	Node    int32  `json:"node"`
	Store   string `json:"store"`
	Learner bool   `json:"learner,omitempty"`
}

func (g *Group) note(format string, args ...any) {
	g.Notes = append(g.Notes, fmt.Sprintf(format, args...))
}

// Report says what was found and what was made of it.
type Report struct {
	DataDir string `json:"data_dir"`
	// Source is where the bytes came from: the data directory, or a URL.
	Source string `json:"source"`
	Node   int32  `json:"node"`
	DryRun bool   `json:"dry_run"`
	// Resumed: an interrupted run of the command was finished; Groups is empty.
	Resumed    bool    `json:"resumed,omitempty"`
	OldCluster string  `json:"old_cluster"`
	OldStore   string  `json:"old_store,omitempty"`
	NewCluster string  `json:"new_cluster,omitempty"`
	NewStore   string  `json:"new_store,omitempty"`
	Groups     []Group `json:"groups"`
	// Nodes are the others, to be started with empty directories.
	Nodes []int32 `json:"other_nodes"`
	// Aside are the names under which the old files remain, in DataDir.
	Aside []string `json:"kept_aside,omitempty"`
	// Notes are about the whole.
	Notes []string `json:"notes,omitempty"`
}

// Count returns how many groups have the outcome.
func (r *Report) Count(o Outcome) int {
	n := 0
	for i := range r.Groups {
		if r.Groups[i].Outcome == o {
			n++
		}
	}
	return n
}

// Error is a reason why nothing was made, with advice.
type Error struct {
	Msg  string
	Hint string
	Err  error // may be nil
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Advice returns what to do about it.
func (e *Error) Advice() string { return e.Hint }
