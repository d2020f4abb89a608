//! What operations cost the nodes: the difference between two samples of their counters.

use d_engine_client::NodeStatus;
use serde::Serialize;

use super::process::Usage;

/// One sample of all counters.
#[derive(Clone, Default, Debug)]
pub(super) struct Look {
    /// The log counters of each node; `None` for a node that did not answer.
    pub(super) logs: Vec<Option<LogCount>>,
    /// The nodes' processes; `None` for one that does not exist. Empty for a cluster that this
    /// command did not start.
    pub(super) processes: Vec<Option<Usage>>,
    /// The callers' process, if the nodes do not run in it.
    pub(super) callers: Option<Usage>,
}

/// A log's counters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct LogCount {
    pub(super) syncs: u64,
    pub(super) bytes: u64,
}

impl LogCount {
    pub(super) fn of(status: &NodeStatus) -> Self {
        Self { syncs: status.log_syncs, bytes: status.log_bytes_written }
    }
}

/// The cost of one operation, summed over all nodes; `None` where it is unknown.
#[derive(Clone, PartialEq, Default, Serialize, Debug)]
pub(super) struct Cost {
    /// Syncs of the logs.
    pub(super) syncs: Option<f64>,
    /// Bytes written to logs, padding included.
    pub(super) log_bytes: Option<f64>,
    /// Bytes that the operating system wrote to disk for the nodes.
    pub(super) disk_bytes: Option<f64>,
    /// User and system time of the nodes.
    pub(super) cpu_seconds: Option<f64>,
    /// Voluntary and involuntary context switches.
    pub(super) context_switches: Option<f64>,
    /// Voluntary context switches: hand-overs of work to a sleeping thread.
    pub(super) thread_hops: Option<f64>,
    /// User and system time of the callers, if they run in a different process than the nodes.
    pub(super) caller_cpu_seconds: Option<f64>,
    /// Peak memory of each node's process; not divided by the operations.
    pub(super) peak_memory_bytes: Option<Vec<u64>>,
}

impl Cost {
    /// Returns the cost of one operation, given two samples and the number of operations between
    /// them.
    pub(super) fn between(before: &Look, after: &Look, operations: u64) -> Self {
        if operations == 0 {
            return Self { peak_memory_bytes: peaks(after), ..Self::default() };
        }
        let each = |total: f64| total / operations as f64;
        let log = |count: fn(&LogCount) -> u64| {
            difference(&before.logs, &after.logs, |log| Some(count(log) as f64))
        };
        let used = |count: fn(&Usage) -> Option<f64>| {
            difference(&before.processes, &after.processes, count)
        };
        Self {
            syncs: log(|log| log.syncs).map(each),
            log_bytes: log(|log| log.bytes).map(each),
            disk_bytes: used(|usage| usage.disk_bytes.map(|bytes| bytes as f64)).map(each),
            cpu_seconds: used(|usage| Some(usage.cpu_seconds)).map(each),
            context_switches: used(|usage| {
                Some((usage.voluntary_switches + usage.involuntary_switches) as f64)
            })
            .map(each),
            thread_hops: used(|usage| Some(usage.voluntary_switches as f64)).map(each),
            caller_cpu_seconds: difference(&[before.callers], &[after.callers], |usage| {
                Some(usage.cpu_seconds)
            })
            .map(each),
            peak_memory_bytes: peaks(after),
        }
    }
}

/// Returns the sum of the differences; `None` if one is unknown or a counter decreased because a
/// node was restarted.
fn difference<T>(
    before: &[Option<T>],
    after: &[Option<T>],
    count: impl Fn(&T) -> Option<f64>,
) -> Option<f64> {
    if before.is_empty() || before.len() != after.len() {
        return None;
    }
    let pairs = before.iter().zip(after);
    pairs
        .map(|(before, after)| {
            let difference = count(after.as_ref()?)? - count(before.as_ref()?)?;
            (difference >= 0.0).then_some(difference)
        })
        .sum()
}

fn peaks(look: &Look) -> Option<Vec<u64>> {
    let peaks: Option<Vec<u64>> =
        look.processes.iter().map(|usage| usage.map(|usage| usage.peak_memory_bytes)).collect();
    peaks.filter(|peaks| !peaks.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(syncs: u64, cpu_seconds: f64) -> Look {
        let usage = Usage {
            cpu_seconds,
            voluntary_switches: syncs * 3,
            involuntary_switches: syncs,
            ..Usage::default()
        };
        Look {
            logs: vec![Some(LogCount { syncs, bytes: syncs * 4096 }); 3],
            processes: vec![Some(usage); 3],
            callers: None,
        }
    }

    #[test]
    fn costs_are_summed_over_nodes_and_divided_by_operations() {
        let cost = Cost::between(&look(10, 1.0), &look(30, 2.0), 10);
        assert_eq!((cost.syncs, cost.log_bytes), (Some(6.0), Some(6.0 * 4096.0)));
        assert_eq!((cost.cpu_seconds, cost.thread_hops), (Some(0.3), Some(18.0)));
        assert_eq!((cost.context_switches, cost.caller_cpu_seconds), (Some(24.0), None));
        // The system did not report it.
        assert_eq!(cost.disk_bytes, None);
    }

    #[test]
    fn what_is_not_known_of_one_node_is_not_known_of_all() {
        let mut after = look(30, 2.0);
        after.logs[1] = None;
        after.processes[2] = Some(Usage::default());
        let cost = Cost::between(&look(10, 1.0), &after, 10);
        assert_eq!(
            (cost.syncs, cost.cpu_seconds),
            (None, None),
            "one did not answer, one was restarted"
        );
        let elsewhere = Cost::between(&Look::default(), &Look::default(), 10);
        assert_eq!(elsewhere, Cost::default());
        assert_eq!(Cost::between(&look(1, 1.0), &look(2, 2.0), 0).syncs, None);
    }
}
