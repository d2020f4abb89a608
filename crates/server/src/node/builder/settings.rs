//! What the parts of a node take from its configuration.

use std::time::Duration;

use d_engine_core::CoreConfig;
use d_engine_replica::{ReplicaConfig, SendLimits};

use super::Node;
use crate::snapshots::ExchangeSettings;

impl Node {
    pub(super) fn exchange_settings(&self) -> ExchangeSettings {
        let settings = &self.config.snapshots;
        ExchangeSettings {
            limits: SendLimits {
                silence: Duration::from_millis(settings.peer_timeout_ms),
                apply: Duration::from_millis(settings.apply_timeout_ms),
                ..SendLimits::default()
            },
            bytes_per_second: settings.send_bytes_per_second,
            len_max: settings.max_bytes,
        }
    }

    pub(super) fn replica_config(&self) -> ReplicaConfig {
        let (config, limits) = (&self.config, &self.config.limits);
        let core = CoreConfig {
            heartbeat_interval: Duration::from_millis(config.heartbeat_interval_ms),
            election_timeout_min: Duration::from_millis(config.election_timeout_min_ms),
            election_timeout_max: Duration::from_millis(config.election_timeout_max_ms),
            append_bytes_max: limits.max_append_bytes as u64,
            inflight_bytes_max: limits.max_inflight_bytes as u64,
            uncommitted_bytes_max: limits.max_uncommitted_bytes as u64,
            waiting_reads_max: limits.max_pending_reads,
            clock_drift_percent_max: config.clock_drift_percent_max,
            max_clock_offset: Duration::from_millis(config.max_clock_offset_ms),
            ..CoreConfig::default()
        };
        ReplicaConfig {
            core,
            command_bytes_max: limits.max_command_bytes,
            proposals_max: limits.max_pending_proposals,
            reads_max: limits.max_pending_reads,
            cache_bytes_max: limits.log_cache_bytes,
            apply_entries_max: limits.max_apply_entries as u64,
            tail_entries: config.snapshots.tail_entries,
            tail_bytes: config.snapshots.tail_bytes,
            min_free_bytes: limits.min_free_bytes,
            purge_timeout: Duration::from_millis(config.snapshots.purge_waits_ms),
            held_bytes: config.snapshots.max_log_bytes / 2,
            snapshot_reserve_bytes: config.snapshots.reserve_bytes,
            accept_clock: config.accept_clock,
            ..ReplicaConfig::default()
        }
    }
}
