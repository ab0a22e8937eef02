//! A stream whose writes fail once the other side has accepted nothing for a while. While a write waits, the connection is
//! in use.
//!
//! Deliberately knows no protocol. Reading is passed on as it is.

use crate::transport::in_flight::InFlight;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// The stream with its limit.
pub(super) struct WriteDeadline<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    timer: Pin<Box<Sleep>>,
    is_waiting: bool,
    in_flight: Arc<InFlight>,
}

impl<S> WriteDeadline<S> {
    /// `limit`: how long one write may wait.
    pub fn new(stream: S, limit: Duration, in_flight: Arc<InFlight>) -> Self {
        WriteDeadline { stream, limit, timer: Box::pin(sleep(limit)), is_waiting: false, in_flight }
    }

    /// Checks the limit of an operation that is pending.
    fn check<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.is_waiting = false;
            self.in_flight.set_writing(false);
            return result;
        }
        if !std::mem::replace(&mut self.is_waiting, true) {
            self.timer.as_mut().reset(Instant::now() + self.limit);
            self.in_flight.set_writing(true);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.check(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.check(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_reads_fails_and_others_do_not() {
        let (near, mut far) = duplex(4);
        let in_flight = Arc::new(InFlight::default());
        let mut stream = WriteDeadline::new(near, Duration::from_secs(20), Arc::clone(&in_flight));
        let later = || std::time::Instant::now() + Duration::from_secs(1);
        stream.write_all(b"1234").await.expect("it fits");
        let began = Instant::now();
        assert_eq!(stream.write_all(b"5").await.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 20);
        assert!(in_flight.idle_since(later()).is_none(), "bytes wait to be written");
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).await.expect("they were written");
        tokio::time::sleep(Duration::from_secs(60)).await;
        stream.write_all(b"6789").await.expect("what was written before has been read");
        assert!(in_flight.idle_since(later()).is_some());
    }
}
