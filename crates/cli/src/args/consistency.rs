//! The values of `--consistency`.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use d_engine_client::ReadConsistency;

/// Parses a consistency; the long help describes each value.
pub(super) fn consistency() -> impl TypedValueParser<Value = ReadConsistency> {
    let values =
        ReadConsistency::ALL.map(|one| PossibleValue::new(one.as_str()).help(meaning(one)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<ReadConsistency>())
}

fn meaning(consistency: ReadConsistency) -> &'static str {
    match consistency {
        ReadConsistency::Linearizable => {
            "Sees every write acknowledged before the read; costs a round of heartbeats"
        }
        ReadConsistency::Lease => {
            "As linearizable while clocks drift less than configured; a leader with a lease \
             answers at once"
        }
        ReadConsistency::Eventual => "Reads what any one node has applied; may be stale",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_consistency_is_described() {
        for consistency in ReadConsistency::ALL {
            assert!(!meaning(consistency).is_empty(), "{consistency:?}");
        }
    }
}
