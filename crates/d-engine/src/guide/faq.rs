//! Symptoms, and what they mean.
//!
//! # Every call returns `NotLeader` without a name
//! No majority of the nodes can reach each other. Start the missing nodes, and look at `d-engine
//! status`: its column REASON names peers that are refused and why, for example a wrong
//! `cluster_id`.
//!
//! # `wait_ready` times out on one node of three
//! The first node of a new cluster waits for a second one: a majority of three is two. Start the
//! nodes together, then wait.
//!
//! # Calls return `Busy`
//! A bound was reached, and the error names it. The node protects its memory; retry after a pause,
//! with fewer calls in flight. If a follower is catching up from a nearly full leader, commands are
//! slowed for some minutes on purpose; `status` says so.
//!
//! # A command returned `OutcomeUnknown`
//! See [`super::errors`]. The command is in the leader's log or was lost with it; read the state
//! before you retry.
//!
//! # `TooLarge`
//! A command has at most `limits.max_command_bytes`, 1 MiB by default. Put large objects elsewhere
//! and replicate their names.
//!
//! # The node has stopped: ... I/O error
//! The first I/O error of the log is final for the process, because after a failed sync nobody
//! knows what is on the disk. The other nodes continue. Check the disk, then restart the node; it
//! recovers and catches up.
//!
//! # The log is damaged, and the node refuses to start
//! The message names the file and the offset. If a snapshot of the node covers the damaged part,
//! the node uses it by itself and logs that. Otherwise run `d-engine repair`: it mends the log
//! without forgetting what the node has acknowledged, or says what to do instead
//! (`docs/recovery.md`). `d-engine log dump` shows what can be read and which entries are lost. In
//! a program, [`offline::repair`](crate::offline::repair) and
//! [`offline::inspect`](crate::offline::inspect) do the same.
//!
//! # The state machine is halted at an entry
//! Its `apply_chunk` or `advance_time` returned an error or panicked. The node continues to persist
//! and to vote. `docs/clients.md` lists the ways out under "When a state machine halts".
//!
//! # Writes are slow with one caller and fast with many
//! Each write waits for a sync of a majority. All writes that arrive during a sync share the next
//! one. Use several callers, or put several operations into one command.
//!
//! # The tests of my own machine differ between nodes
//! Some part of `apply_chunk` depends on more than the command: a clock, a random number, the order
//! of a hash map, a float from another library version. The conformance kit applies the same
//! commands to two machines and compares them.
//!
//! # The node does not stop
//! [`stop`](crate::EmbeddedEngine::stop) waits for your state machine, and logs every five seconds
//! which thread it waits for.
//!
//! # Two programs use one directory
//! The second one is refused: a directory is locked by the node that runs on it. The lock ends with
//! the process.
