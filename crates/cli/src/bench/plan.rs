//! What to measure, from the command line.

use std::time::Duration;

use bytes::Bytes;
use d_engine_client::ReadConsistency;

use crate::args::{BenchArgs, Workload};
use crate::exit::Failure;

/// Prefix of every key, so that a bench of a shared cluster leaves other clients' keys alone.
const KEY_PREFIX: &str = "bench/";
/// Callers per connection without `--connections`.
const CALLERS_PER_CONNECTION: u16 = 64;
const READS_DEFAULT: u8 = 50;
const PAGE_DEFAULT: u32 = 100;

/// What to measure.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) workload: Workload,
    pub(super) consistency: ReadConsistency,
    /// The name of the consistency; `None` for workloads that do not read.
    pub(super) consistency_word: Option<&'static str>,
    /// Percentage of gets in a mixed workload.
    pub(super) reads: u8,
    /// Records per page of a scan.
    pub(super) page: u32,
    pub(super) key_bytes: usize,
    pub(super) keys: u32,
    pub(super) value: Bytes,
    /// Operations per second; `None` for a closed loop.
    pub(super) rate: Option<u32>,
    pub(super) duration: Duration,
    pub(super) warmup: Duration,
    pub(super) timeout: Duration,
    /// Numbers of callers, measured in turn.
    pub(super) callers: Vec<u16>,
    /// Connections to each node.
    connections: Option<u16>,
}

/// A kind of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Put,
    Get,
    Scan,
    Propose,
}

impl Operation {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Scan => "scan",
            Self::Propose => "propose",
        }
    }
}

impl Plan {
    /// Checks what clap cannot: options of other workloads, and keys that do not fit.
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let workload = args.workload;
        let only_with = |option: &str, given: bool, workloads: &[Workload]| {
            if !given || workloads.contains(&workload) {
                return Ok(());
            }
            let words: Vec<&str> = workloads.iter().copied().map(word).collect();
            let (with, is) = (words.join(", "), word(workload));
            Err(Failure::refused(format_args!(
                "{option} goes with {with}; the workload is {is}: leave the option out"
            )))
        };
        let reading = [Workload::Get, Workload::Mixed, Workload::Scan];
        only_with("--consistency", args.consistency.is_some(), &reading)?;
        only_with("--reads", args.reads.is_some(), &[Workload::Mixed])?;
        only_with("--page", args.page.is_some(), &[Workload::Scan])?;
        if args.embedded && args.connections.is_some() {
            return Err(Failure::refused(
                "--connections cannot be used with --embedded, which has no connections; leave it \
                 out",
            ));
        }
        let (key_bytes, last) = (usize::from(args.key_bytes), key_text(args.keys - 1, 0));
        if last.len() > key_bytes {
            return Err(Failure::refused(format_args!(
                "--key-bytes {key_bytes}: the last of {} keys is {last:?}, {} bytes; use longer or \
                 fewer keys",
                args.keys,
                last.len()
            )));
        }
        let consistency = args.consistency.unwrap_or_default();
        Ok(Self {
            workload,
            consistency,
            consistency_word: reading.contains(&workload).then_some(consistency.as_str()),
            reads: args.reads.unwrap_or(READS_DEFAULT),
            page: args.page.unwrap_or(PAGE_DEFAULT),
            key_bytes,
            keys: args.keys,
            value: (0..args.value_bytes).map(|at| b'a' + (at % 26) as u8).collect(),
            rate: args.rate,
            duration: args.duration,
            warmup: args.warmup,
            timeout: args.timeout,
            callers: args.callers.clone(),
            connections: args.connections,
        })
    }

    pub(super) fn workload_word(&self) -> &'static str {
        word(self.workload)
    }

    /// Returns the number of connections to each node that `callers` share.
    pub(super) fn connections(&self, callers: u16) -> u16 {
        self.connections.unwrap_or(callers.div_ceil(CALLERS_PER_CONNECTION)).min(callers)
    }

    /// Whether the workload reads, so that records must be put first.
    pub(super) fn needs_records(&self) -> bool {
        self.consistency_word.is_some()
    }

    pub(super) fn key(&self, number: u32) -> Bytes {
        key_text(number, self.key_bytes).into()
    }

    /// Chooses the next operation and its key.
    pub(super) fn choose(&self, random: &mut Random) -> (Operation, u32) {
        let operation = match self.workload {
            Workload::Put => Operation::Put,
            Workload::Get => Operation::Get,
            Workload::Scan => Operation::Scan,
            Workload::Propose => Operation::Propose,
            Workload::Mixed if random.below(100) < u32::from(self.reads) => Operation::Get,
            Workload::Mixed => Operation::Put,
        };
        (operation, random.below(self.keys))
    }
}

fn word(workload: Workload) -> &'static str {
    match workload {
        Workload::Put => "put",
        Workload::Get => "get",
        Workload::Mixed => "mixed",
        Workload::Scan => "scan",
        Workload::Propose => "propose",
    }
}

fn key_text(number: u32, bytes: usize) -> String {
    format!("{KEY_PREFIX}{number:0width$}", width = bytes.saturating_sub(KEY_PREFIX.len()))
}

/// Pseudo-random numbers for choosing keys (xorshift64*); the same in every run.
pub(super) struct Random(u64);

impl Random {
    /// Returns the sequence of one caller.
    pub(super) fn of(caller: u16) -> Self {
        Self((u64::from(caller) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Returns a number below `bound`, which must not be 0.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((high * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Verb};

    fn plan(args: &[&str]) -> Result<Plan, String> {
        let all = ["d-engine", "bench"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.verb {
            Verb::Bench(args) => Plan::new(&args).map_err(|failure| failure.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn keys_have_the_length_asked_for_and_one_that_does_not_fit_is_refused() {
        let plan_of = plan(&["--keys", "1000", "--key-bytes", "12"]).unwrap();
        assert_eq!(plan_of.key(7), "bench/000007");
        let refused = plan(&["--keys", "1001", "--key-bytes", "9"]).unwrap_err();
        assert!(refused.contains("--key-bytes 9") && refused.contains("bench/1000"), "{refused}");
        assert!(plan(&["--keys", "1000", "--key-bytes", "9"]).is_ok());
    }

    #[test]
    fn options_of_other_workloads_are_refused_and_named() {
        for (args, named) in [
            (&["put", "--consistency", "lease"][..], "--consistency goes with get, mixed, scan"),
            (&["get", "--reads", "10"], "--reads goes with mixed; the workload is get"),
            (&["propose", "--page", "10"], "--page goes with scan"),
            (&["--embedded", "--connections", "2"], "--connections"),
            (&["--embedded", "--endpoints", "a:1"], "cannot be used with"),
            (&["--endpoints", "a:1", "--dir", "x"], "cannot be used with"),
            (&["--callers", "0"], "--callers"),
            (&["--rate", "0"], "--rate"),
            (&["--duration", "0s"], "longer than 0"),
        ] {
            let refused = plan(args).unwrap_err();
            assert!(refused.contains(named), "{args:?}: {refused}");
        }
    }

    #[test]
    fn a_mixed_workload_has_the_share_of_reads_that_is_asked_for() {
        let plan = plan(&["mixed", "--reads", "90", "--keys", "50"]).unwrap();
        let mut random = Random::of(3);
        let chosen: Vec<_> = (0..10_000).map(|_| plan.choose(&mut random)).collect();
        let gets = chosen.iter().filter(|(operation, _)| *operation == Operation::Get).count();
        assert!((8_800..9_200).contains(&gets), "{gets}");
        for key in 0..50 {
            assert!(chosen.iter().any(|(_, chosen)| *chosen == key), "key {key} is never used");
        }
    }

    #[test]
    fn callers_share_connections_and_none_is_without_a_caller() {
        let plan_of = plan(&["--callers", "1,64,256"]).unwrap();
        assert_eq!(
            plan_of.callers.iter().map(|n| plan_of.connections(*n)).collect::<Vec<_>>(),
            [1, 1, 4]
        );
        assert_eq!(plan(&["--connections", "8"]).unwrap().connections(2), 2);
    }
}
