//! What a process has used, from Linux's `/proc`; unknown on other systems.

use std::fs;
use std::path::Path;

/// Clock ticks per second in `/proc/PID/stat`; part of Linux's interface, the same on every common
/// machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used since it started.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    /// How often a thread slept and was woken.
    pub(super) voluntary_switches: u64,
    /// How often a thread was preempted.
    pub(super) involuntary_switches: u64,
    /// Bytes written to block devices; `None` where the system does not count them.
    pub(super) disk_bytes: Option<u64>,
    /// Peak resident memory.
    pub(super) peak_memory_bytes: u64,
}

impl Usage {
    /// Returns the usage of a process; `None` if there is no such process or no `/proc`.
    pub(super) fn of(process: u32) -> Option<Self> {
        let dir = Path::new("/proc").join(process.to_string());
        let mut usage = Self {
            cpu_seconds: cpu_seconds(&fs::read_to_string(dir.join("stat")).ok()?)?,
            disk_bytes: fs::read_to_string(dir.join("io"))
                .ok()
                .and_then(|io| field(&io, "write_bytes:")),
            peak_memory_bytes: field(&fs::read_to_string(dir.join("status")).ok()?, "VmHWM:")?
                * 1024,
            ..Self::default()
        };
        for task in fs::read_dir(dir.join("task")).ok()?.flatten() {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            usage.voluntary_switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            usage.involuntary_switches +=
                field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Some(usage)
    }
}

/// User and system time from `/proc/PID/stat`: fields 14 and 15. Field 2 is a name in brackets that
/// may contain anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let behind_name = stat.rsplit_once(')')?.1;
    let mut fields = behind_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// Returns the number in the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the type of the file system that holds `path`; `None` if it is unknown.
pub(super) fn file_system(path: &Path) -> Option<String> {
    file_system_in(&fs::read_to_string("/proc/self/mounts").ok()?, path)
}

/// Returns the type of the deepest mount that contains `path`; of several at one place, the last
/// counts.
fn file_system_in(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        // A blank in a name is written as \040.
        let place = place.replace("\\040", " ");
        path.starts_with(&place).then(|| (Path::new(&place).components().count(), kind))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat =
            "71 (d-engine (x) 1 2) S 1 71 71 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("71 (d-engine) S 1"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status =
            "VmHWM:\t   2048 kB\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "VmHWM:"), Some(2048));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(5));
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), Some(7));
        assert_eq!(field(status, "VmPeak:"), None);
    }

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mounts =
            "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /mnt/my\\040disk xfs rw 0 0\n";
        let of = |path: &str| file_system_in(mounts, Path::new(path));
        assert_eq!(of("/tmp/x").as_deref(), Some("tmpfs"));
        assert_eq!(of("/tmpfoo").as_deref(), Some("ext4"));
        assert_eq!(of("/mnt/my disk/x").as_deref(), Some("xfs"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.peak_memory_bytes > 1 << 20, "{usage:?}");
        let makes_way = || {
            std::thread::yield_now();
            let usage = Usage::of(std::process::id()).unwrap();
            usage.voluntary_switches + usage.involuntary_switches > 0
        };
        assert!((0..100_000).any(|_| makes_way()), "{usage:?}");
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
