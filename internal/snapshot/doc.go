// Package snapshot keeps a replica's durable state in one file and carries it
// to other nodes: the checkpoint file, the manifest of its bytes, the Server
// that hands them out, the Receiver that fetches what it lacks, the generation
// directories both work in, and the arithmetic of when to snapshot and trim.
// It knows neither Raft nor the network: indexes come in, a Source carries
// requests.
//
// # Who calls what
//
// The owner of a replica (package raftgroup) has a directory per replica,
// base, with one directory per generation in it (correctness rules 12, 13):
//
//	base/g7/checkpoint          the state at index S: header, file list, blob
//	base/g7/<data files>        whatever the state machine keeps; they only grow
//	base/g8.staging/            a Fetch that is not complete; *.part inside
//	base/g8/                    complete, verified, durable; live once the
//	                            raftlog's Install record names generation 8
//
// Taking a checkpoint, on a background goroutine:
//
//	capture.Sync()                                     // failed: receiver.MarkUnsynced(that directory)
//	info, err := snapshot.Write(fs, snapshot.GenDir(base, 7), snapshot.Checkpoint{
//		Group: g, Point: p, Files: files, CreatedAt: now}, snapshot.Zstd, capture.WriteTo)
//	capture.Published()
//
// Opening a replica:
//
//	snapshot.RemoveOthers(fs, base, generation)        // the one the raftlog names
//	ck, blob, err := snapshot.Read(fs, snapshot.GenDir(base, generation))
//	errors.Is(err, snapshot.ErrNoCheckpoint)           // a new replica: start empty
//
// Offering it (leader), when raft wants a snapshot sent:
//
//	pin, err := server.Pin(group, replica, snapshot.GenDir(base, 7), toNode)
//	offer := pin.Offer(myNode)
//	offer.Peers = caughtUp                             // nodes that have the same bytes
//	msg := offer.Append(nil)                           // travels to the follower
//	server.Unpin(pin.ID)                               // transfer over, either way
//	server.Live(group)                                 // for TrimTo
//	server.Handle(ctx, method, req)                    // every transport call "snapshot.*"
//	server.Sent(method, reply)                         // optional: the reply is written
//	server.SetSpoilt(told)                             // of files that it cannot give
//	server.SetFinder(find)                             // as a peer: where a group's checkpoint lies
//
// Fetching it (follower), on a goroutine of its own:
//
//	offer, err := snapshot.DecodeOffer(msg)
//	staged, err := receiver.Fetch(ctx, offer, snapshot.FetchOptions{
//		Base: base, Live: 7, Next: 8, Donors: donors, Reserve: reserve, Priority: snapshot.PriorityVoter,
//		More: []snapshot.ChunkSource{archive}}, source)
//	stop := receiver.KeepPins(ctx, offer, source)      // while what was staged is looked at
//	ck, blob, err := snapshot.Read(fs, staged.Dir)     // staged.Dir is base/g8
//	stop()
//	// step MsgSnap; one raftlog Install record with generation 8; switch; then
//	receiver.Done(ctx, offer, source)                  // the source drops its pin
//	snapshot.RemoveOlder(fs, base, 8)                  // 9 may be complete by now
//
// A Fetch that failed or was cancelled keeps its staging: the next Fetch into
// the same Base and Next goes on, whatever the new offer is. Cancel and wait
// for the running one before starting another (ErrBusy). When raft did not
// want the snapshot after all, or the replica caught up through the log,
// receiver.Discard(group, base, live) removes what was staged.
//
// # Ownership
//
// The Server owns pins and their open files; an unlink or a newer checkpoint's
// rename does not disturb a pin. A pin ends by Unpin, by the receiver's Done, or
// when the receiver stays silent or slower than the minimum rate for PinExpiry.
// The Receiver owns base/g<Next>.staging from Fetch to its return. A file in
// staging is either *.part, written by this package alone, or complete under
// its own name and then never written again, for it may be a hard link into
// the live generation.
//
// # Why a crash leaves the old state or the new
//
// Checkpoint: everything is written to checkpoint.tmp and synced, renamed over
// checkpoint, and the directory is synced. A crash before the rename is durable
// leaves the old file, whose data files are still there because rule 12 unlinks
// only after Write returned.
//
// Generation: nothing is named g<Next> before each of its files is synced and read
// back and the staging directory synced; then one rename and one sync of base.
// Nothing refers to g<Next> before the raftlog does. Reading back compares what
// this Fetch hashed and then wrote with its CRC-32C of that moment, and hashes
// everything else: what is reused is hashed after the sync (correctness rule 13).
//
// Resume: what is in staging is hashed again and what matches the (possibly
// new) manifest is kept. There is no journal that could disagree with the bytes.
// Part files are handed to the kernel every 4 MiB and synced every 32 MiB, so a power
// loss costs at most those of the files at work, a kill what was under way.
//
// A sync that failed is final: a local file, or the generation of an owner whose sync failed
// (MarkUnsynced), gets a mark (NAME.unsynced) and is copied
// instead of linked from then on, a part file is removed, and of a staging of which a directory could not be synced
// nothing is used again. The mark need not be durable (unsynced.go).
//
// # From whom
//
// What a snapshot is, only the offer's source says: it lists names and sizes at
// once and hands out hashes as it computes them, so that the first file is fetched while
// the next is hashed. The bytes come from whoever has them: first the ChunkSources
// that the caller names (the object store), then the peers of the offer, where the
// receiver opens a pin of its own on whatever checkpoint the peer has (segments roll
// alike, so name and chunk match by hash, and a shorter tail lacks chunks), then the
// offer's source. None of the former is needed: one that fails, hangs or has no slot
// rests for 5 s, doubled each time, one that gave wrong bytes is not asked again, and
// each says so in one line.
//
// # What is fetched
//
// A file that is here whole is linked, a chunk that is here whole is copied. Of
// a chunk in which a local file ends, or in which the length in that file's
// checkpoint lies, the beginning is kept: the source hashes prefixes of the
// chunk, at most 8 a question, the longest that is here too is copied, the rest is fetched,
// and the manifest's hash of the chunk judges the two together before anything
// is written. The rest of a chunk comes from a peer or the source, since an object
// store has whole chunks. A source that does not answer is asked for whole chunks. So a file
// that only grew costs what it grew by and a few hundred bytes.
//
// # Memory
//
// A transfer holds 1 MiB a call in flight (Parallel, 4) twice, one hashing
// buffer, and the manifest: 32 bytes for each MiB of state. The source holds
// the replies in flight, 64 KiB a prefix request, and the manifest. Replies' memory is
// used again where the transport says when. Blobs are streamed when written.
//
// # What a pin costs
//
// A pin keeps files open, at most MaxPins and MaxPinnedFiles, and holds the log behind
// its snapshot. It ends by silence for PinExpiry, by a rate below MinBytesPerSecond and by
// reading more than twice the snapshot. What all pins hold of the log is capped by
// raftlog.max_bytes: under the log's pressure the owner trims past them. A pin that a
// receiver opened at a peer holds no log, and ends when the same node opens another.
//
// # Non-goals
//
// Deciding when to offer, votes, membership, and the install record belong to
// raftgroup. What a blob means belongs to the state machine. Bytes that the
// source itself holds corrupted are sent as they are: record checksums are
// checked by whoever opens the state.
package snapshot
