//! How patient a client is.

use std::time::Duration;

/// How patient a client is. Start from the default and change what you need.
///
/// ```
/// use std::time::Duration;
/// let options = d_engine_client::ClientOptions::default().timeout(Duration::from_secs(3));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How long one call may take with all its retries. Default 10 s. [`Client::with_timeout`](crate::Client)
    /// has it for single calls. What is left of it goes to the node with every call.
    pub timeout: Duration,
    /// How long a node may take to accept a connection and answer on it once. Default 2 s.
    pub connect_timeout: Duration,
    /// With calls in flight, how often a node is asked for a sign of life. Default 500 ms.
    pub ping_interval: Duration,
    /// How long such a sign may take before the connection counts as lost. Default 1 s.
    pub ping_timeout: Duration,
    /// The longest command or question that is sent, in bytes. Default 8 MiB, which is the most that a
    /// node can be configured to take; its own bound is 1 MiB unless `limits.max_command_bytes` says
    /// otherwise.
    pub max_command_bytes: usize,
    /// The longest answer that is taken, in bytes. Default 64 MiB.
    pub max_reply_bytes: usize,
    /// Calls that may be in flight at once, over all clones of the client; one more is answered
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

    /// Sets [`ClientOptions::ping_interval`] and [`ClientOptions::ping_timeout`]: a node that dies without
    /// closing its connection is noticed after the sum of both at the latest.
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
