//! The starts that a full disk refuses: what they leave behind may not grow each time.

/// How often refused starts on one full disk may leave more than any before them: once what the log
/// begins and once what the state machine does, which the next starts continue in.
const GROWTHS_MAX: u32 = 2;

/// The starts of a node that were refused one after the other while its disk was full.
#[derive(Debug, Default)]
pub(crate) struct RefusedStarts {
    /// The most bytes that were used before or after one of them.
    most: u64,
    growths: u32,
}

impl RefusedStarts {
    /// Notes a refused start, with the bytes used before and after it. Returns whether each start
    /// uses more.
    pub(crate) fn grow(&mut self, before: u64, after: u64) -> bool {
        let most = self.most.max(before);
        self.growths += u32::from(after > most);
        self.most = most.max(after);
        self.growths > GROWTHS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_use_more_each_time_are_told_from_those_that_begin_a_file_once() {
        let mut once = RefusedStarts::default();
        assert!(
            ![(10, 20), (15, 30), (12, 30), (30, 30), (30, 29)]
                .into_iter()
                .any(|(before, after)| once.grow(before, after))
        );
        let mut leaks = RefusedStarts::default();
        let grows = [(10, 20), (20, 30), (30, 40)].map(|(before, after)| leaks.grow(before, after));
        assert_eq!(grows, [false, false, true]);
    }
}
