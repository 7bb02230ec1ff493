//! Takes an upload, by the streams contract, and logs how many bytes came and how the peer's half ended.
//!
//! The variable `ANSWER` of its environment says when it answers and ends its own half: `first`, before it reads; `between`,
//! after the first bytes; or `last`, which is the default. With `END=unheard` it drops the future that tells how the half
//! ended.

wit_bindgen::generate!({ path: "../../wit", world: "service" });

use exports::inet::service::handler::{ErrorCode, Guest, Peer};
use wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

type End = Result<(), ErrorCode>;

struct Upload;

impl Guest for Upload {
    async fn handle(
        _peer: Peer,
        mut inbound: StreamReader<u8>,
        inbound_end: FutureReader<End>,
    ) -> (StreamReader<u8>, FutureReader<End>) {
        let answer = std::env::var("ANSWER").unwrap_or_default();
        let unheard = std::env::var("END").is_ok_and(|end| end == "unheard");
        let (writer, outbound) = wit_stream::new();
        let (end, outbound_end) = wit_future::new(|| Err(ErrorCode::InternalError));
        background::spawn(async move {
            let mut inbound_end = (!unheard).then_some(inbound_end);
            let mut own = Some((writer, end));
            if answer == "first" {
                give(&mut own, b"ready\n").await;
            }
            let mut count = 0;
            loop {
                let (status, chunk) = inbound.read(Vec::with_capacity(1024)).await;
                count += chunk.len();
                if status == StreamResult::Dropped {
                    break;
                }
                if answer == "between" {
                    give(&mut own, b"ready\n").await;
                }
            }
            match inbound_end.take() {
                Some(end) => eprintln!("{count} bytes, {:?}", end.await),
                None => eprintln!("{count} bytes"),
            }
            give(&mut own, format!("{count}\n").as_bytes()).await;
        });
        (outbound, outbound_end)
    }
}

/// Answers and ends the outbound half, unless that has been done.
async fn give(own: &mut Option<(StreamWriter<u8>, FutureWriter<End>)>, answer: &[u8]) {
    if let Some((mut writer, end)) = own.take() {
        writer.write_all(answer.to_vec()).await;
        drop(writer);
        // Fails only where the connection is gone, which leaves nobody to tell.
        let _ = end.write(Ok(())).await;
    }
}

export!(Upload);
