//! `put`, `get`, `delete`, `cas`, `scan`.

use std::time::Duration;

use clap::{ArgGroup, Args};

use super::{ClusterArgs, Freshness, duration};

const PUT_HELP: &str = "\
Examples:
    d-engine put greeting hello
    d-engine put --endpoints 10.0.0.1:7001,10.0.0.2:7001 --timeout 2s greeting hello
    d-engine put --ttl 30s service/a 10.0.0.1:80     # vanishes unless it is put again
    d-engine put --previous greeting 'good day'      # prints what was there

Any node will do: a follower names the leader, and the put goes there. Exit 0 means: on stable storage \
at a majority, and applied. Exit 4 means: it may or may not have taken effect; look with `get`.";

#[derive(Args, Debug)]
#[command(after_help = PUT_HELP)]
pub(crate) struct PutArgs {
    /// The key.
    pub(crate) key: String,
    /// Its new value.
    pub(crate) value: String,
    /// Let the key vanish after this time, for example 30s; without it the key stays.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,
    /// Print the value that the key had before, if it had one.
    #[arg(long)]
    pub(crate) previous: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const GET_HELP: &str = "\
Examples:
    d-engine get greeting
    d-engine get --consistency eventual --endpoints 127.0.0.1:7002 greeting
    d-engine get first second third            # all of one moment
    d-engine get --json first second

One value is written as it is, with a line break behind it only on a terminal; of several keys each that has \
a value is a line `key<TAB>value`. With --json each key is a line {\"key\": ..., \"value\": ...}, the value null \
if there is none; what is no UTF-8 is given in hexadecimal, as \"key_hex\" or \"value_hex\". Exit 3: a key has \
no value.";

#[derive(Args, Debug)]
#[command(after_help = GET_HELP)]
pub(crate) struct GetArgs {
    /// The key, or several.
    #[arg(required = true, value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// How fresh the value must be.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    pub(crate) consistency: Freshness,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const DELETE_HELP: &str = "\
Examples:
    d-engine delete greeting

Exit 0 also when the key had no value. Exit 4 means: it may or may not have taken effect; look with `get`.";

#[derive(Args, Debug)]
#[command(after_help = DELETE_HELP)]
pub(crate) struct DeleteArgs {
    /// The key.
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const CAS_HELP: &str = "\
Examples:
    d-engine cas --absent lock me              # take a lock
    d-engine cas --expect me --delete lock     # give it back
    d-engine cas --expect 1 counter 2

Exit 5 means: another value was there, which is printed; nothing was changed. Exit 4 means: it may or may not \
have taken effect; look with `get`.";

#[derive(Args, Debug)]
#[command(after_help = CAS_HELP)]
#[command(override_usage = "d-engine cas [OPTIONS] <--expect <VALUE>|--absent> <KEY> <VALUE|--delete>")]
#[command(group = ArgGroup::new("expected").required(true).args(["expect", "absent"]))]
#[command(group = ArgGroup::new("new").required(true).args(["value", "delete"]))]
pub(crate) struct CasArgs {
    /// The key.
    pub(crate) key: String,
    /// Its new value.
    pub(crate) value: Option<String>,
    /// The value that must be there.
    #[arg(long, value_name = "VALUE")]
    pub(crate) expect: Option<String>,
    /// The key must have no value.
    #[arg(long)]
    pub(crate) absent: bool,
    /// Delete the key instead of giving it a new value.
    #[arg(long)]
    pub(crate) delete: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const SCAN_HELP: &str = "\
Examples:
    d-engine scan                              # everything
    d-engine scan --prefix service/
    d-engine scan --from a --to b --limit 100
    d-engine scan --keys-only | wc -l
    d-engine scan --prefix user/ --json

A record is a line `key<TAB>value`, which `import` reads as long as no key holds a tab and nothing a line break; with --json a line {\"key\": ..., \"value\": ...}, and \
what is no UTF-8 is given in hexadecimal, as \"key_hex\" or \"value_hex\". The records are fetched in pages; each \
page is of one moment, the whole is not.";

#[derive(Args, Debug)]
#[command(after_help = SCAN_HELP)]
pub(crate) struct ScanArgs {
    /// Only keys that begin so.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["from", "to"])]
    pub(crate) prefix: Option<String>,
    /// Only this key and those behind it.
    #[arg(long, value_name = "KEY")]
    pub(crate) from: Option<String>,
    /// Only keys before this one.
    #[arg(long, value_name = "KEY")]
    pub(crate) to: Option<String>,
    /// At most so many records.
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Leave the values out.
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// How fresh each page must be.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    pub(crate) consistency: Freshness,
    /// Print JSON for programs, a line for each record.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}
