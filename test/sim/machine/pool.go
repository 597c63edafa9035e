package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Pool runs one guest in processes of its own, one run at a time in each. Compiled
// guests cannot be interrupted while they only compute, not even for the garbage
// collection of the process they are in; a process can be ended. They also keep out of
// each other's memory.
//
// The processes are copies of this program, whose main function (or TestMain) must
// call Worker first.
type Pool struct {
	dir     string // has the guest
	options Options
	mu      sync.Mutex
	idle    []*worker
}

const (
	workerEnv = "CHRONIK_SIM_WORKER"
	grace     = 2 * time.Second // of computing, for a guest that is to end by itself
)

// task is what a worker is told at its start, in workerEnv.
type task struct {
	Wasm    string
	Options Options
}

// answer is what a worker says of a run.
type answer struct {
	Result Result
	Host   hostPart
	Err    string
}

// hostPart is the part of a Result that is not in the guest's report.
type hostPart struct {
	Trace          uint64
	Clock, Wall    time.Duration
	Output, Stderr []byte
}

// NewPool compiles wasm, into the cache that o must name, for processes to be started
// as they are needed.
func NewPool(ctx context.Context, wasm []byte, o Options) (*Pool, error) {
	m, err := Open(ctx, wasm, o)
	if err != nil {
		return nil, err
	}
	if err := m.Close(ctx); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	dir, err := os.MkdirTemp("", "chronik-sim-")
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	p := &Pool{dir: dir, options: o}
	if err := os.WriteFile(p.wasm(), wasm, 0o600); err != nil {
		return nil, fmt.Errorf("machine: %w", errors.Join(err, p.Close()))
	}
	return p, nil
}

func (p *Pool) wasm() string {
	return filepath.Join(p.dir, "guest.wasm")
}

// Close ends the idle processes. No run may be going on.
func (p *Pool) Close() error {
	for _, w := range p.idle {
		w.end()
	}
	p.idle = nil
	return os.RemoveAll(p.dir)
}

// Run is Machine.Run in another process. A process that does not answer has a guest
// that computed past its bound, or broke the machine: the Violation says which.
func (p *Pool) Run(ctx context.Context, a Args) (Result, error) {
	w, err := p.take()
	if err != nil {
		return Result{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.cmd.Process.Kill() })()
	ended := make(chan struct{})
	var guard sync.WaitGroup
	guard.Go(func() { w.guard(a.cpu()+grace, ended) })
	r, err := w.run(a)
	close(ended)
	guard.Wait() // it kills no later run
	if ctx.Err() != nil {
		w.end()
		return Result{}, ctx.Err()
	}
	if err != nil {
		_ = w.cmd.Process.Kill() // if it lives, it is out of step
		w.end()
		return w.obituary(a, err), nil
	}
	p.mu.Lock()
	p.idle = append(p.idle, w)
	p.mu.Unlock()
	if r.Err != "" {
		return Result{}, errors.New(r.Err)
	}
	h := r.Host
	r.Result.Trace, r.Result.Clock, r.Result.Wall, r.Result.Output, r.Result.Stderr = h.Trace, h.Clock, h.Wall, h.Output, h.Stderr
	return r.Result, nil
}

// take returns an idle process or starts one.
func (p *Pool) take() (*worker, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return w, nil
	}
	p.mu.Unlock()
	text, err := json.Marshal(task{p.wasm(), p.options})
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	return startWorker(string(text))
}

// A worker is one process of a pool, seen from the pool.
type worker struct {
	cmd      *exec.Cmd
	requests *json.Encoder
	stdin    io.Closer
	answers  *json.Decoder
	stderr   tail
	hung     atomic.Bool // it was killed for that
	ended    sync.Once
}

func startWorker(task string) (*worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	w := &worker{cmd: exec.Command(exe), stderr: tail{max: keepStderr}}
	w.cmd.Env = append(os.Environ(), workerEnv+"="+task)
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is this process's to handle
	stdin, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	w.stdin, w.requests, w.answers = stdin, json.NewEncoder(stdin), json.NewDecoder(stdout)
	return w, nil
}

// run has the process run a, passes its log on and returns its answer.
func (w *worker) run(a Args) (answer, error) {
	r := request{Args: a, Log: a.Log != nil}
	if err := w.requests.Encode(r); err != nil {
		return answer{}, err
	}
	for {
		var m message
		if err := w.answers.Decode(&m); err != nil {
			return answer{}, err
		}
		if m.Answer != nil {
			return *m.Answer, nil
		}
		if a.Log != nil {
			_, _ = a.Log.Write(m.Log) // a log that cannot be written changes no run
		}
	}
}

// end waits for the process, which is told or was killed.
func (w *worker) end() {
	w.ended.Do(func() {
		_ = w.stdin.Close()
		_ = w.cmd.Wait() // how it ended is in its ProcessState
	})
}

// obituary is the result of a run whose process died of it.
func (w *worker) obituary(a Args, err error) Result {
	r := Result{Seed: a.Seed, Steps: a.Steps, Stderr: w.stderr.bytes()}
	if w.hung.Load() {
		r.Violation = &Violation{Hung, fmt.Sprintf("still computing after %v, without asking for anything", a.cpu())}
	} else {
		r.Violation = &Violation{Crash, fmt.Sprintf("the process of the run ended (%v, %v): %s", err, w.cmd.ProcessState, crashText(string(r.Stderr)))}
	}
	return r
}

// request is what a pool asks of a worker, message what that says.
type request struct {
	Args Args
	Log  bool
}

type message struct {
	Log    []byte  `json:",omitempty"`
	Answer *answer `json:",omitempty"`
}

// Worker does a pool's work and does not return, if this process was started for that.
// Otherwise it does nothing.
func Worker() {
	text := os.Getenv(workerEnv)
	if text == "" {
		return
	}
	if err := work(text, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "panic: simulation worker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func work(text string, in io.Reader, out io.Writer) error {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return err
	}
	wasm, err := os.ReadFile(t.Wasm)
	if err != nil {
		return err
	}
	ctx := context.Background()
	m, err := Open(ctx, wasm, t.Options)
	if err != nil {
		return err
	}
	collapseCode()
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return m.Close(ctx)
		} else if err != nil {
			return err
		}
		if r.Log {
			r.Args.Log = logWriter{answers}
		}
		var a answer
		a.Result, err = m.Run(ctx, r.Args)
		if err != nil {
			a.Err = err.Error()
		}
		a.Host = hostPart{a.Result.Trace, a.Result.Clock, a.Result.Wall, a.Result.Output, a.Result.Stderr}
		if err := answers.Encode(message{Answer: &a}); err != nil {
			return err
		}
	}
}

// A logWriter sends what is written to it as messages.
type logWriter struct{ to *json.Encoder }

func (l logWriter) Write(p []byte) (int, error) {
	return len(p), l.to.Encode(message{Log: p})
}

// guard kills the process when it has computed for bound more, until ended is closed.
func (w *worker) guard(bound time.Duration, ended <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	began := time.Now()
	used := func() time.Duration {
		if cpu, err := cpuOf(w.cmd.Process.Pid); err == nil {
			return cpu
		}
		return time.Since(began) // no /proc here
	}
	for first := used(); ; {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		if used()-first > bound {
			w.hung.Store(true)
			_ = w.cmd.Process.Kill()
			return
		}
	}
}

// cpuOf returns what a process has computed so far (proc(5): the fields 14 and 15 of
// stat, in hundredths of a second, the second of which is a name in parentheses).
func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("machine: stat of %d fields", len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}
