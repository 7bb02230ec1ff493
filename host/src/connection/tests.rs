//! Connections over pipes in memory, with real guests.

use std::future::{pending, ready};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::Sleep;

use super::*;
use crate::config::{CacheDir, Grants};
use crate::sandbox::{Compiler, Generation, Origin, Sandbox};

async fn generation(guest: &str) -> Arc<Generation> {
    static GUESTS: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
        let here = std::env::current_exe().unwrap();
        let target_dir = guest_builder::target_dir(&here).unwrap();
        guest_builder::build_all(guest_builder::workspace(), &target_dir).unwrap()
    });
    let path = GUESTS
        .iter()
        .find(|path| path.file_stem() == Some(Path::new(guest).as_os_str()));
    let sandbox = Sandbox::new(
        &limits(),
        &Grants::default(),
        &Compiler::in_process(&CacheDir::Off),
    )
    .unwrap();
    sandbox
        .load(&Origin::File(path.unwrap().clone()).read().unwrap())
        .await
        .unwrap()
}

fn limits() -> Limits {
    Limits {
        max_connections: std::num::NonZeroUsize::new(4).unwrap(),
        idle_timeout: None,
        ..Limits::default()
    }
}

fn peer() -> Peer {
    Peer {
        connection: 7,
        remote: "192.0.2.7:49152".into(),
        local: "192.0.2.1:8080".into(),
        listener: "test".into(),
        ..Peer::default()
    }
}

/// Both ends of a connection whose pipe holds `capacity` bytes in each direction.
fn pipe(capacity: usize) -> (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(capacity);
    let (reader, writer) = split(near);
    (reader, writer, far)
}

/// Serves one connection beside `client`, which has the far end of its pipe.
fn half<T>(io: T) -> Half<T> {
    Half::new(io, None)
}

async fn serve_with<F: Future<Output = ()>>(
    guest: &str,
    limits: Limits,
    cut: impl Future<Output = Outcome> + Send + 'static,
    client: impl FnOnce(DuplexStream) -> F,
) -> Report {
    let generation = generation(guest).await;
    let (reader, writer, far) = pipe(1000);
    let peer = peer();
    let served = serve(&generation, &peer, half(reader), half(writer), &limits, cut);
    tokio::join!(served, client(far)).0
}

#[tokio::test]
async fn both_halves_end_in_order() {
    for guest in ["echo", "lines", "lines-session"] {
        let text = "a line\n".repeat(1000);
        let report = serve_with(guest, limits(), pending(), async |far| {
            let (mut reader, mut writer) = split(far);
            let mut heard = String::new();
            let send = async {
                writer.write_all(text.as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            tokio::join!(send, async { reader.read_to_string(&mut heard).await.unwrap() });
            assert!(heard == text, "{guest}");
        })
        .await;
        assert_eq!(report.outcome, Outcome::Finished, "{guest}");
        assert_eq!((report.bytes_in, report.bytes_out), (7000, 7000), "{guest}");
        assert_eq!(report.reason, None, "{guest}");
    }
}

#[tokio::test]
async fn a_trap_is_told_with_its_reason() {
    for guest in ["trap", "panic"] {
        let report = serve_with(guest, limits(), pending(), async |mut far| {
            far.write_all(b"!").await.unwrap();
            assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        })
        .await;
        assert_eq!(report.outcome, Outcome::GuestTrap, "{guest}");
        assert!(report.reason.unwrap().contains("unreachable"), "{guest}");
    }
}

#[tokio::test]
async fn an_instance_that_cannot_be_made_is_told_with_its_reason() {
    for guest in ["echo", "discard"] {
        let mut generation = generation(guest).await;
        Arc::get_mut(&mut generation).unwrap().starve();
        let (reader, writer, _far) = pipe(1000);
        let report = serve(
            &generation,
            &peer(),
            half(reader),
            half(writer),
            &limits(),
            pending(),
        )
        .await;
        assert_eq!(report.outcome, Outcome::StartFailed, "{guest}");
        assert!(report.reason.unwrap().contains("exceeds"), "{guest}");
    }
}

#[tokio::test]
async fn a_reset_of_the_guest_is_told_with_its_word() {
    for guest in ["hang-up", "hang-up-session"] {
        let report = serve_with(guest, limits(), pending(), async |mut far| {
            far.write_all(b"!").await.unwrap();
            assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        })
        .await;
        assert_eq!(report.outcome, Outcome::GuestReset, "{guest}");
        assert_eq!(report.reason.as_deref(), Some("refused"), "{guest}");
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_when_the_guest_writes_is_told_apart() {
    for guest in ["chargen", "flood"] {
        let report = serve_with(guest, limits(), pending(), async |mut far| {
            far.read_exact(&mut [0; 100]).await.unwrap();
        })
        .await;
        assert_eq!(report.outcome, Outcome::PeerReset, "{guest}");
    }
}

#[tokio::test]
async fn a_cut_ends_a_connection_whatever_its_guest_does() {
    for (guest, sent) in [
        ("echo", "hello"),
        ("deaf", "hello"),
        ("spin", "!"),
        ("discard", "hello"),
    ] {
        let (cut, cut_off) = tokio::sync::oneshot::channel::<()>();
        let cut_off = async {
            drop(cut_off.await);
            Outcome::Drained
        };
        let report = serve_with(guest, limits(), cut_off, async |mut far| {
            far.write_all(sent.as_bytes()).await.unwrap();
            cut.send(()).unwrap();
            let _ = far.read_to_end(&mut Vec::new()).await.unwrap();
        })
        .await;
        assert_eq!(report.outcome, Outcome::Drained, "{guest}");
    }
}

#[tokio::test]
async fn a_cut_that_came_before_the_connection_ends_it_too() {
    let report = serve_with("echo", limits(), ready(Outcome::Drained), async |mut far| {
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
    assert_eq!(report.outcome, Outcome::Drained);
}

#[tokio::test]
async fn silence_is_counted_from_the_last_byte() {
    let limits = Limits {
        idle_timeout: Some(Duration::from_secs(2)),
        ..limits()
    };
    let start = Instant::now();
    let mut last = start;
    let report = serve_with("echo", limits, pending(), async |mut far| {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            far.write_all(b"x").await.unwrap();
            far.read_exact(&mut [0]).await.unwrap();
        }
        last = Instant::now();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
    assert_eq!(report.outcome, Outcome::IdleTimeout);
    assert_eq!((report.bytes_in, report.bytes_out), (10, 10));
    assert!(
        last.elapsed() >= Duration::from_millis(1900),
        "closed {:?} after the last byte",
        last.elapsed()
    );
}

/// A writer that sends its last bytes only after a time, as TLS does with a peer that reads slowly.
struct Slow<W> {
    inner: W,
    rest: Pin<Box<Sleep>>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Slow<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.rest.as_mut().poll(cx));
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn the_last_bytes_of_a_guest_have_as_long_as_any_write() {
    for (guest, said) in [("daytime", ""), ("lines-session", "quit\n"), ("echo", "x")] {
        let generation = generation(guest).await;
        tokio::time::pause();
        let write = Duration::from_secs(60);
        for (takes, outcome) in [(30, Outcome::Finished), (90, Outcome::WriteTimeout)] {
            let limits = Limits {
                write_timeout: Some(write),
                ..limits()
            };
            let (reader, inner, mut far) = pipe(1000);
            far.write_all(said.as_bytes()).await.unwrap();
            let (mut far_reader, mut far_writer) = split(far);
            far_writer.shutdown().await.unwrap();
            let start = Instant::now();
            let writer = Slow {
                inner,
                rest: Box::pin(tokio::time::sleep(Duration::from_secs(takes))),
            };
            let peer = peer();
            let served = serve(&generation, &peer, half(reader), half(writer), &limits, pending());
            let mut heard = Vec::new();
            let (report, _) = tokio::join!(served, far_reader.read_to_end(&mut heard));
            assert_eq!(report.outcome, outcome, "{guest}");
            let took = start.elapsed();
            let expected = Duration::from_secs(takes).min(write);
            assert!((expected..expected + LINGER).contains(&took), "{guest}: {took:?}");
        }
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_connection_that_is_done_waits_for_its_peer_but_not_for_ever() {
    // The peer never ends its half. Time stands still and leaps to the next timer when nothing else happens.
    let generation = generation("daytime").await;
    tokio::time::pause();
    let (reader, writer, far) = pipe(1000);
    let start = Instant::now();
    let report = serve(
        &generation,
        &peer(),
        half(reader),
        half(writer),
        &limits(),
        pending(),
    )
    .await;
    assert_eq!(report.outcome, Outcome::Finished);
    assert!(
        (LINGER..LINGER * 2).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    drop(far);
}

/// A reader of these pieces, which then ends or is reset.
struct Pieces(Vec<&'static [u8]>, bool);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.pop() {
            buffer.put_slice(piece);
        } else if self.1 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

/// A writer of a connection that has failed.
struct Failed(io::ErrorKind);

impl AsyncWrite for Failed {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(self.0.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.0.into()))
    }
}

#[tokio::test]
async fn a_session_receives_what_came_before_its_write_failed() {
    let generation = generation("lines-session").await;
    for (error, reset) in [
        (io::ErrorKind::ConnectionReset, true),
        (io::ErrorKind::BrokenPipe, false),
    ] {
        let reader = Pieces(vec![b"three\n", b"two\n", b"one\n"], reset);
        let report = serve(
            &generation,
            &peer(),
            half(reader),
            half(Failed(error)),
            &limits(),
            pending(),
        )
        .await;
        assert_eq!(report.outcome, Outcome::PeerReset);
        assert_eq!((report.bytes_in, report.bytes_out), (14, 0));
        assert_eq!(report.at_end.peer_ended, !reset);
    }
}
