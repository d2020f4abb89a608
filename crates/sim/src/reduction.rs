//! Which part of a seed's run is run: only some of its faults and of its clients' calls, without
//! some kinds of faults, and up to some time.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::profile::Profile;
use crate::time::{MS, SECOND};

/// A set of numbers, written as `3,7-12`, or `none`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Numbers(BTreeSet<u64>);

impl Numbers {
    /// Whether the set has this number.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.0.contains(&number)
    }

    /// The numbers, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<u64> for Numbers {
    fn from_iter<T: IntoIterator<Item = u64>>(numbers: T) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        if ranges.is_empty() {
            return f.write_str("none");
        }
        for (place, (first, last)) in ranges.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let number = |text: &str| {
            let read = text.trim().parse::<u64>();
            read.map_err(|_| format!("{text:?} is not a number; expected for example 3,7-12"))
        };
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first || last - first > 1_000_000 {
                return Err(format!("{part:?} is not a range; expected for example 7-12"));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

/// Something of which a run has too much to number it, so that it can only be left out as a whole.
/// The kinds of faults have the names that the summary of a series prints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the names of the other variants say it all")]
pub enum Disturbance {
    MessageDropped,
    MessageDuplicated,
    MessageReplayed,
    MessageLongDelayed,
    CrashInWrite,
    CrashInRecovery,
    SyncStall,
    DiskError,
    ClockDrift,
    CrashInSnapshot,
    SnapshotDiskError,
    SnapshotDamaged,
    LogDamaged,
    SendCut,
    /// While two nodes lead, all clients call one of the two.
    Rush,
    /// After the recovery, one thing hangs, is slow or shuts down while writes continue.
    Trial,
}

impl Disturbance {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::MessageDropped,
        Self::MessageDuplicated,
        Self::MessageReplayed,
        Self::MessageLongDelayed,
        Self::CrashInWrite,
        Self::CrashInRecovery,
        Self::SyncStall,
        Self::DiskError,
        Self::ClockDrift,
        Self::CrashInSnapshot,
        Self::SnapshotDiskError,
        Self::SnapshotDamaged,
        Self::LogDamaged,
        Self::SendCut,
        Self::Rush,
        Self::Trial,
    ];

    /// Takes it out of a profile. The chances become zero and are still drawn, so that the other
    /// draws do not shift.
    fn remove_from(self, profile: &mut Profile) {
        let snapshots = &mut profile.snapshots;
        match self {
            Self::MessageDropped => profile.drop = 0,
            Self::MessageDuplicated => profile.duplicate = 0,
            Self::MessageReplayed => profile.museum = 0,
            Self::MessageLongDelayed => profile.long_delay = 0,
            Self::CrashInWrite => (profile.crash_in_write, profile.crash_in_idle) = (0, 0),
            Self::CrashInRecovery => profile.crash_in_recovery = 0,
            Self::SyncStall => profile.sync_stall = 0,
            Self::DiskError => profile.disk_error = 0,
            Self::ClockDrift => profile.clock_drift = 0,
            Self::CrashInSnapshot => snapshots.crash_in_step = 0,
            Self::SnapshotDiskError => snapshots.disk_error = 0,
            Self::SnapshotDamaged => snapshots.damage = 0,
            Self::LogDamaged => profile.log_damage = 0,
            Self::SendCut => (snapshots.cut, snapshots.cut_at_end) = (0, 0),
            Self::Rush => profile.rush = false,
            // Not part of a profile; `run.rs` leaves it out.
            Self::Trial => {}
        }
    }
}

impl FromStr for Disturbance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|it| format!("{it:?}") == text);
        found.ok_or_else(|| {
            let known: Vec<String> = Self::ALL.iter().map(|it| format!("{it:?}")).collect();
            format!("expected one of {}", known.join(", "))
        })
    }
}

/// A part of a seed's run. [`fmt::Display`] gives the options of `d-engine-sim` that run it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Reduction {
    /// The numbers of the faults that happen; `None` for all.
    pub faults: Option<Numbers>,
    /// The numbers of the clients' calls that are made; `None` for all.
    pub calls: Option<Numbers>,
    /// The disturbances that happen; `None` for all.
    pub kinds: Option<BTreeSet<Disturbance>>,
    /// The simulated time at which faults and calls end, in nanoseconds.
    pub until: Option<u64>,
}

impl Reduction {
    /// Whether this is the whole run.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this disturbance happens.
    pub(crate) fn has(&self, disturbance: Disturbance) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&disturbance))
    }

    /// Takes out of the profile what does not happen.
    pub(crate) fn remove_from(&self, profile: &mut Profile) {
        for disturbance in Disturbance::ALL.into_iter().filter(|it| !self.has(*it)) {
            disturbance.remove_from(profile);
        }
    }

    /// Reads the names of disturbances, such as `SyncStall,Trial`, or `none`.
    ///
    /// # Errors
    /// There is no disturbance with such a name.
    pub fn parse_kinds(text: &str) -> Result<BTreeSet<Disturbance>, String> {
        if text == "none" { Ok(BTreeSet::new()) } else { text.split(',').map(str::parse).collect() }
    }

    /// Reads a time in simulated seconds with up to three decimals, such as `12.346`.
    ///
    /// # Errors
    /// It is not such a time.
    pub fn parse_until(text: &str) -> Result<u64, String> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let millis = format!("{decimals:0<3}");
        let read = |text: &str| text.parse::<u64>().ok();
        match (read(whole), read(&millis)) {
            (Some(seconds), Some(millis)) if decimals.len() <= 3 && seconds < 1_000_000 => {
                Ok(seconds * SECOND + millis * MS)
            }
            _ => Err(format!("{text:?} is not a time in seconds; expected for example 12.346")),
        }
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = Vec::new();
        if let Some(until) = self.until {
            let millis = until.div_ceil(MS);
            options.push(format!("--until {}.{:03}", millis / 1_000, millis % 1_000));
        }
        if let Some(kinds) = &self.kinds {
            let names: Vec<String> = kinds.iter().map(|it| format!("{it:?}")).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(",") };
            options.push(format!("--only-kinds {names}"));
        }
        options.extend(self.faults.as_ref().map(|faults| format!("--only-faults {faults}")));
        options.extend(self.calls.as_ref().map(|calls| format!("--only-calls {calls}")));
        f.write_str(&options.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_ranges_and_read_again() {
        for (numbers, text) in
            [(vec![], "none"), (vec![3], "3"), (vec![3, 4, 5, 9, 11, 12], "3-5,9,11-12")]
        {
            let numbers: Numbers = numbers.into_iter().collect();
            assert_eq!(numbers.to_string(), text);
            assert_eq!(text.parse(), Ok(numbers));
        }
        for wrong in ["", "3-", "7-3", "a", "1-9999999999"] {
            assert!(wrong.parse::<Numbers>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_time_is_read_to_the_millisecond() {
        assert_eq!(Reduction::parse_until("12.346"), Ok(12 * SECOND + 346 * MS));
        assert_eq!(Reduction::parse_until("12"), Ok(12 * SECOND));
        assert_eq!(Reduction::parse_until("0.05"), Ok(50 * MS));
        assert!(Reduction::parse_until("1.2345").is_err() && Reduction::parse_until("x").is_err());
    }

    #[test]
    fn every_disturbance_is_read_by_its_name() {
        for disturbance in Disturbance::ALL {
            assert_eq!(format!("{disturbance:?}").parse(), Ok(disturbance));
        }
        assert_eq!(Reduction::parse_kinds("none"), Ok(BTreeSet::new()));
        let two = BTreeSet::from([Disturbance::SyncStall, Disturbance::Trial]);
        assert_eq!(Reduction::parse_kinds("SyncStall,Trial"), Ok(two));
        assert!(Reduction::parse_kinds("SyncStall,").is_err());
    }
}
