//! Timeouts and bounds of a client.

use std::time::Duration;

/// The timeouts and bounds of a client. Start from the default and change what you need.
///
/// ```
/// use std::time::Duration;
/// let options = d_engine_client::ClientOptions::default().timeout(Duration::from_secs(3));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// The deadline of one call, retries included. Default 10 s.
    /// [`Client::with_timeout`](crate::Client) sets it for single calls. Each call carries its
    /// remaining time to the node.
    pub timeout: Duration,
    /// How long a node may take to accept a connection and answer one call on it. Default 2 s.
    pub connect_timeout: Duration,
    /// Interval of pings on a connection with calls in flight. Default 500 ms.
    pub ping_interval: Duration,
    /// How long the response to a ping may take before the connection counts as lost. Default 1 s.
    pub ping_timeout: Duration,
    /// The longest command or query to send, in bytes. Default 8 MiB, the most that a node can be
    /// configured to accept. A node's own bound is 1 MiB unless `limits.max_command_bytes` is set.
    pub max_command_bytes: usize,
    /// The longest reply to accept, in bytes. Default 64 MiB.
    pub max_reply_bytes: usize,
    /// Calls in flight over all clones of the client; one more returns
    /// [`ClientError::Busy`](crate::ClientError::Busy) at once. Default 4,096.
    pub max_in_flight: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_millis(500),
            ping_timeout: Duration::from_secs(1),
            max_command_bytes: 8 << 20,
            max_reply_bytes: 64 << 20,
            max_in_flight: 4_096,
        }
    }
}

impl ClientOptions {
    /// Sets [`ClientOptions::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`ClientOptions::connect_timeout`].
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets [`ClientOptions::ping_interval`] and [`ClientOptions::ping_timeout`]. A node that fails
    /// without closing its connection is noticed after at most the sum of both.
    #[must_use]
    pub fn ping(mut self, interval: Duration, timeout: Duration) -> Self {
        self.ping_interval = interval;
        self.ping_timeout = timeout;
        self
    }

    /// Sets [`ClientOptions::max_command_bytes`].
    #[must_use]
    pub fn max_command_bytes(mut self, bytes: usize) -> Self {
        self.max_command_bytes = bytes;
        self
    }

    /// Sets [`ClientOptions::max_reply_bytes`].
    #[must_use]
    pub fn max_reply_bytes(mut self, bytes: usize) -> Self {
        self.max_reply_bytes = bytes;
        self
    }

    /// Sets [`ClientOptions::max_in_flight`].
    #[must_use]
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }
}
