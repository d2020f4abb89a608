//! Addresses at which nodes listen and are reached: `host:port`.

use std::net::{IpAddr, Ipv6Addr};

/// A parsed `host:port`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address<'a> {
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: &'a str,
    /// The port; 0 means any free one.
    pub port: u16,
}

/// Whether others can dial the address: it has a form that is understood, a port, and no wildcard.
/// No name is looked up.
#[must_use]
pub fn can_be_dialled(address: &str) -> bool {
    Address::parse(address).is_some_and(|it| it.port != 0 && !it.is_wildcard())
}

/// Whether only nodes of this machine reach the address.
#[must_use]
pub fn is_loopback(address: &str) -> bool {
    Address::parse(address).is_some_and(|address| {
        address.host.eq_ignore_ascii_case("localhost")
            || address.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

impl<'a> Address<'a> {
    /// Parses `host:port`, `1.2.3.4:port` or `[v6]:port`, without a DNS lookup.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = port.parse().ok()?;
        if let Some(inner) = host.strip_prefix('[') {
            let host = inner.strip_suffix(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            return Some(Self { host, port });
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        (!host.is_empty() && host.bytes().all(name)).then_some(Self { host, port })
    }

    /// Whether the host is "every interface" (0.0.0.0 or ::): valid for listening, not for
    /// dialling.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}
