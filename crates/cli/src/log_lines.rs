//! Writes the log lines of `serve` to stderr.
//!
//! Logging must never block on the reader of the log: the raft thread logs too, and a stopped
//! terminal or a hung log collector would stop the node. So a line goes into a bounded queue, and a
//! dedicated thread writes it. Lines that do not fit into the queue or cannot be written (closed
//! pipe, full disk) are dropped and counted; once writes succeed again, a line reports how many
//! were lost.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_locks::Unpoisoned;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::exit::{Exit, Failure};

/// Bound of the queue in bytes; a line that would exceed it is dropped.
const QUEUE_BYTES: usize = 1 << 20;
/// How long the exit waits for the last lines to be written.
const LAST_LINES_WITHIN: Duration = Duration::from_millis(500);

/// Writes lines from a queue on a dedicated thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogLines {
    queue: Arc<Queue>,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line has been taken from the queue and is being written.
    is_writing: bool,
    /// Lines dropped since the last report of dropped lines.
    dropped: u64,
}

impl LogLines {
    /// Writes the log of this process to stderr from now on, panics included.
    pub(crate) fn to_stderr() -> Result<Self, Failure> {
        let filter = filter()?;
        let is_terminal = io::stderr().is_terminal();
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("stderr cannot be used: {error}"))
        };
        // A separate descriptor, so that the standard library's lock on stderr is not held while a
        // write blocks.
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| wrong(&error))?;
        let lines = Self::start(File::from(stderr), QUEUE_BYTES).map_err(|error| wrong(&error))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(lines.clone())
            .with_ansi(is_terminal)
            .log_internal_errors(false)
            .try_init()
            .map_err(|error| wrong(&error))?;
        // The default hook would write to stderr on the panicking thread.
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
            let backtrace = std::backtrace::Backtrace::capture();
            match backtrace.status() {
                std::backtrace::BacktraceStatus::Captured => {
                    tracing::error!(thread, "{panic}\n{backtrace}");
                }
                _ => tracing::error!(thread, "{panic}"),
            }
        }));
        Ok(lines)
    }

    fn start(to: impl Write + Send + 'static, bytes_max: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), bytes_max });
        let taken = queue.clone();
        std::thread::Builder::new()
            .name("log-lines".to_owned())
            .spawn(move || taken.write_all_to(to))?;
        Ok(Self { queue })
    }

    /// Enqueues a line that is not a log line.
    pub(crate) fn say(&self, line: impl std::fmt::Display) {
        self.queue.put(format!("{line}\n").into_bytes());
    }

    /// Waits until the queue is written, for a bounded time: stderr may have no reader.
    pub(crate) fn finish(&self) {
        self.finish_within(LAST_LINES_WITHIN);
    }

    fn finish_within(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut state = self.queue.lock();
        while state.is_writing || !state.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.queue.changed.wait_timeout(state, left);
            state = waited.unpoisoned().0;
        }
    }
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { queue: &self.queue }
    }
}

/// Enqueues one line; `tracing_subscriber` passes each line as one write.
pub(crate) struct LineWriter<'a> {
    queue: &'a Queue,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    // No code panics while holding the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    fn put(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes.saturating_add(line.len()) > self.bytes_max {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Writes lines and never returns. Only `finish` waits for this thread, for a bounded time.
    fn write_all_to(&self, mut to: impl Write) {
        let mut last_error = None;
        let mut was_cut = false;
        loop {
            let (line, dropped) = self.next();
            if dropped > 0 {
                let why = match &last_error {
                    None => "they were not read fast enough".to_owned(),
                    Some(error) => format!("{error}"),
                };
                let notice = format!("d-engine: {dropped} log lines were lost: {why}\n");
                if write_line(&mut to, notice.as_bytes(), &mut was_cut).is_ok() {
                    self.reported(dropped);
                }
            }
            match write_line(&mut to, &line, &mut was_cut) {
                Ok(()) => last_error = None,
                Err(error) => {
                    last_error = Some(error);
                    self.lock().dropped += 1;
                }
            }
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for a line and returns it with the number of dropped lines that were not reported yet.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return (line, state.dropped);
            }
            state = self.changed.wait(state).unpoisoned();
        }
    }

    fn reported(&self, dropped: u64) {
        self.lock().dropped -= dropped;
    }
}

/// Writes a line; begins with a line break if the previous line was written only in part.
fn write_line(to: &mut impl Write, line: &[u8], was_cut: &mut bool) -> io::Result<()> {
    if *was_cut {
        to.write_all(b"\n")?;
    }
    *was_cut = false;
    let mut left = line;
    while !left.is_empty() {
        match to.write(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                *was_cut = true;
                left = left.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    *was_cut = false;
    to.flush()
}

fn filter() -> Result<EnvFilter, Failure> {
    match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).map_err(|error| {
            Failure::new(
                Exit::Refused,
                format_args!("RUST_LOG cannot be used: {error}; write for example RUST_LOG=info"),
            )
        }),
        _ => Ok(EnvFilter::new("info")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Asks before each write what it should return, and passes on the written bytes.
    struct Asked {
        answers: Receiver<io::Result<()>>,
        asks: SyncSender<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Asked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asks.send(()).ok();
            self.answers.recv().unwrap_or(Ok(()))?;
            self.written.send(bytes.to_vec()).ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log; the results to give its writes; a signal before each write; the written lines.
    type Watched = (LogLines, Sender<io::Result<()>>, Receiver<()>, Receiver<Vec<u8>>);

    fn asked(bytes_max: usize) -> Watched {
        let (answer, answers) = channel();
        let (asks, asked) = sync_channel(100);
        let (written, lines) = channel();
        let started = LogLines::start(Asked { answers, asks, written }, bytes_max).unwrap();
        (started, answer, asked, lines)
    }

    fn text(lines: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(lines.recv_timeout(LONG).unwrap()).unwrap()
    }

    #[test]
    fn whoever_logs_never_waits_and_what_does_not_fit_is_counted() {
        let (log, answer, asked, lines) = asked(20);
        log.say("first");
        // The write of the first line blocks; each line is six bytes.
        asked.recv_timeout(LONG).unwrap();
        for _ in 0..10 {
            log.say("later");
        }
        let waiting = |log: &LogLines| {
            let state = log.queue.lock();
            (state.bytes, state.dropped)
        };
        assert_eq!(waiting(&log), (18, 7));
        // No write completes: `finish` waits for a bounded time.
        log.finish_within(Duration::from_millis(1));
        drop(answer);
        log.finish_within(LONG);
        let expected = [
            "first\n",
            "d-engine: 7 log lines were lost: they were not read fast enough\n",
            "later\n",
        ];
        for line in expected {
            assert_eq!(text(&lines), line);
        }
        assert_eq!(waiting(&log), (0, 0));
    }

    #[test]
    fn lines_that_cannot_be_written_are_lost_and_told_when_it_works_again() {
        let (log, answer, _asked, lines) = asked(1_000);
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
            // Before the second line, the writer tries to report that the first one was lost.
            answer.send(Err(kind.into())).unwrap();
        }
        answer.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        log.say("one");
        log.finish_within(LONG);
        log.say("two");
        log.finish_within(LONG);
        drop(answer);
        log.say("three");
        log.finish_within(LONG);
        assert!(text(&lines).starts_with("d-engine: 2 log lines were lost: "));
        assert_eq!(text(&lines), "three\n");
    }

    #[test]
    fn after_half_a_line_the_next_one_begins_on_a_line_of_its_own() {
        struct Halves(Vec<u8>, bool);
        impl Write for Halves {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if std::mem::take(&mut self.1) {
                    self.0.extend_from_slice(&bytes[..3]);
                    return Ok(3);
                }
                if self.0 == b"one" {
                    self.0.push(b'!');
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.0.extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut to, mut was_cut) = (Halves(Vec::new(), true), false);
        assert!(write_line(&mut to, b"one two\n", &mut was_cut).is_err());
        write_line(&mut to, b"three\n", &mut was_cut).unwrap();
        assert_eq!(String::from_utf8_lossy(&to.0), "one!\nthree\n");
    }
}
