//! Halves over pipes in memory.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_lent_half_comes_back_when_it_is_dropped() {
    let (near, _far) = tokio::io::duplex(64);
    let half = Half::new(near, None);
    let lent = half.lend().unwrap();
    assert!(half.lend().is_none());
    let returned = half.returned();
    drop(lent);
    returned.await;
    assert!(half.lend().is_some());
}

#[tokio::test]
async fn bytes_and_the_end_are_seen() {
    let (near, mut far) = tokio::io::duplex(64);
    let half = Half::new(near, None);
    let mut lent = half.lend().unwrap();
    far.write_all(b"hello").await.unwrap();
    drop(far);
    let mut text = String::new();
    lent.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), half.bytes(), half.ended()), ("hello", 5, true));
    assert_eq!(half.failure(), None);
}

#[tokio::test]
async fn a_peer_that_does_not_read_stalls_the_half() {
    let (near, mut far) = tokio::io::duplex(4);
    let half = Half::new(near, None);
    let mut lent = half.lend().unwrap();
    let writing = tokio::spawn(async move { lent.write_all(b"hello").await });
    while !half.stalled() {
        tokio::task::yield_now().await;
    }
    assert_eq!(half.bytes(), 4);
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).await.unwrap();
    writing.await.unwrap().unwrap();
    assert_eq!((half.bytes(), half.stalled()), (5, false));
}

#[tokio::test]
async fn no_more_bytes_come_than_may() {
    for (sent, exceeded) in [(4, false), (5, true)] {
        let (near, mut far) = tokio::io::duplex(64);
        let half = Half::new(near, Some(4));
        let mut lent = half.lend().unwrap();
        far.write_all(&b"12345"[..sent]).await.unwrap();
        drop(far);
        let mut bytes = [0; 8];
        assert_eq!(lent.read(&mut bytes).await.unwrap(), 4);
        let mut more = std::pin::pin!(lent.read(&mut bytes));
        // The end stands behind the byte that is too many, and is not seen however often it is read.
        for _ in 0..if exceeded { 3 } else { 1 } {
            let end = poll_fn(|cx| Poll::Ready(more.as_mut().poll(cx))).await;
            assert_eq!(end.is_pending(), exceeded);
        }
        assert_eq!(
            (half.bytes(), half.exceeded(), half.ended()),
            (4, exceeded, !exceeded)
        );
    }
}

#[tokio::test]
async fn no_more_bytes_go_than_may() {
    let (near, mut far) = tokio::io::duplex(64);
    let half = Half::new(near, Some(4));
    let mut lent = half.lend().unwrap();
    lent.write_all(b"123").await.unwrap();
    assert!(!half.exceeded());
    assert_eq!(lent.write(b"45").await.unwrap(), 1);
    let mut more = std::pin::pin!(lent.write(b"5"));
    assert!(
        poll_fn(|cx| Poll::Ready(more.as_mut().poll(cx)))
            .await
            .is_pending()
    );
    assert!(half.exceeded());
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"1234");
}

#[tokio::test]
async fn a_failure_is_kept() {
    let (near, far) = tokio::io::duplex(4);
    drop(far);
    let half = Half::new(near, None);
    half.lend().unwrap().write_all(b"hello").await.unwrap_err();
    assert_eq!(half.failure(), Some(Failure::Reset));
    assert!(!half.ended());
}
