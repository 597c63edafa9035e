package snapshot

import "errors"

var (
	// ErrCorrupt says that bytes on disk or from a source are not what their
	// checksum, hash or format demands. The text names file and byte.
	ErrCorrupt = errors.New("corrupt")
	// ErrNoCheckpoint says that a generation directory has no checkpoint file.
	ErrNoCheckpoint = errors.New("no checkpoint")
	// ErrTooLarge says that something exceeds a hard limit of the format.
	ErrTooLarge = errors.New("too large")
	// ErrNoSpace says that a snapshot does not fit on the disk beside the
	// reserve. The group is untouched and the staging kept.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrPinGone says that the source does not hold the snapshot any more.
	ErrPinGone = errors.New("snapshot is no longer pinned")
	// ErrTooManyPins says that the Server's cap on pins or files is reached.
	ErrTooManyPins = errors.New("too many pinned snapshots")
	// ErrStalled says that a transfer made no progress for ProgressTimeout.
	ErrStalled = errors.New("no progress")
	// ErrSource says that a source answered a request with a refusal.
	ErrSource = errors.New("source refused")
	// ErrMismatch says that the source's checkpoint is not the offered one.
	ErrMismatch = errors.New("not the offered snapshot")
	// ErrBusy says that a Fetch into the same directory is running.
	ErrBusy = errors.New("a fetch into this directory is running")
	// ErrNoGeneration says that the generation to keep is absent or unreadable;
	// nothing was removed.
	ErrNoGeneration = errors.New("generation is not there")
	// ErrClosed says that the Server was closed.
	ErrClosed = errors.New("snapshot server closed")
)
