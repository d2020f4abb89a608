//! Times on the command line.

use std::time::Duration;

/// Parses a time such as `500ms`, `30s`, `5m`, `2h` or `7d`; zero is refused.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// Parses a time as [`duration`] does, but accepts `0s`.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write for example 500ms, 5s, 10m, 2h or 7d");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let milliseconds =
        number.checked_mul(milliseconds).ok_or_else(|| format!("{text:?} is too long"))?;
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("5s", 5), ("10m", 600), ("2h", 7_200), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "0s",
            "5 s",
            "5min",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
