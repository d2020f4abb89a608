//! `put`, `get`, `delete`, `cas`, `scan`.

use std::time::Duration;

use clap::{ArgGroup, Args};
use d_engine_client::ReadConsistency;

use super::consistency::consistency;
use super::{ClusterArgs, duration};

const PUT_HELP: &str = "\
Examples:
    d-engine put greeting hello
    d-engine put --endpoints 10.0.0.1:7001,10.0.0.2:7001 --timeout 2s greeting hello
    d-engine put --ttl 30s service/a 10.0.0.1:80     # expires unless it is put again
    d-engine put --previous greeting 'good day'      # prints the previous value

Any endpoint will do: a follower names the leader, and the put goes there. Exit 0: a majority has \
synced the put to disk, and it is applied. Exit 4: the put may or may not have taken effect; \
check with `get`.";

#[derive(Args, Debug)]
#[command(after_help = PUT_HELP)]
pub(crate) struct PutArgs {
    /// The key.
    pub(crate) key: String,
    /// Its new value.
    pub(crate) value: String,
    /// Let the key expire after this time, for example 30s; without it the key stays.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,
    /// Print the previous value of the key, if it had one.
    #[arg(long)]
    pub(crate) previous: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const GET_HELP: &str = "\
Examples:
    d-engine get greeting
    d-engine get --consistency eventual --endpoints 127.0.0.1:7002 greeting
    d-engine get first second third            # all from one state
    d-engine get --json first second

One value is written byte for byte, followed by a line break only on a terminal. With several \
keys, each key that has a value is a line `key<TAB>value`. With --json each key is a line \
{\"key\": ..., \"value\": ...}, the value null if there is none; bytes that are not UTF-8 are \
written in hexadecimal, as \"key_hex\" or \"value_hex\". Exit 3: a key has no value.";

#[derive(Args, Debug)]
#[command(after_help = GET_HELP)]
pub(crate) struct GetArgs {
    /// One or more keys.
    #[arg(required = true, value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// Consistency of the read.
    #[arg(long, value_parser = consistency(), default_value = "linearizable")]
    pub(crate) consistency: ReadConsistency,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const DELETE_HELP: &str = "\
Examples:
    d-engine delete greeting

Exit 0 even if the key had no value. Exit 4: the delete may or may not have taken effect; check \
with `get`.";

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
    d-engine cas --expect me --delete lock     # release it
    d-engine cas --expect 1 counter 2

Exit 5: the key has another value, which is printed, or none; nothing was changed. Exit 4: the \
change may or may not have taken effect; check with `get`.";

#[derive(Args, Debug)]
#[command(after_help = CAS_HELP)]
#[command(
    override_usage = "d-engine cas [OPTIONS] <--expect <VALUE>|--absent> <KEY> <VALUE|--delete>"
)]
#[command(group = ArgGroup::new("expected").required(true).args(["expect", "absent"]))]
#[command(group = ArgGroup::new("new").required(true).args(["value", "delete"]))]
pub(crate) struct CasArgs {
    /// The key.
    pub(crate) key: String,
    /// Its new value.
    pub(crate) value: Option<String>,
    /// The value that the key must have.
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

A record is a line `key<TAB>value`, which `import` can read if no key holds a tab and no key or \
value a line break. With --json it is a line {\"key\": ..., \"value\": ...}; bytes that are not \
UTF-8 are written in hexadecimal, as \"key_hex\" or \"value_hex\". The records are fetched in \
pages; each page is from one state, the whole scan is not.";

#[derive(Args, Debug)]
#[command(after_help = SCAN_HELP)]
pub(crate) struct ScanArgs {
    /// Only keys that begin with this text.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["from", "to"])]
    pub(crate) prefix: Option<String>,
    /// Only this key and the keys after it.
    #[arg(long, value_name = "KEY")]
    pub(crate) from: Option<String>,
    /// Only keys before this one.
    #[arg(long, value_name = "KEY")]
    pub(crate) to: Option<String>,
    /// At most this many records.
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Print only the keys.
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Consistency of each page.
    #[arg(long, value_parser = consistency(), default_value = "linearizable")]
    pub(crate) consistency: ReadConsistency,
    /// Print JSON, one line per record.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}
