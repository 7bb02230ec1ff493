//! A library for guests in Rust: network services that wasm-inetd runs as WebAssembly components.
//!
//! The crate is a thin layer over the bindings that `wit-bindgen` generates. Guests can also use
//! the bindings directly: see [`streams::bindings`] and [`sessions::bindings`].
//!
//! # Streams
//!
//! A guest of the streams contract implements [`streams::Service`], with an `async` function that
//! reads from a connection and writes to it:
//!
//! ```ignore
//! use inet_guest::streams::{Connection, ErrorCode, Service, export};
//!
//! struct Upper;
//!
//! impl Service for Upper {
//!     async fn serve(connection: Connection) -> Result<(), ErrorCode> {
//!         let (mut lines, mut outbound) = (connection.inbound.lines(4096), connection.outbound);
//!         while let Some(line) = lines.next().await? {
//!             outbound.write_all(line.to_ascii_uppercase()).await?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! export!(Upper);
//! ```
//!
//! [`sleep`] and [`timeout`] wait without holding up the other connections of the instance:
//!
//! ```ignore
//! let line = timeout(Duration::from_secs(30), lines.next()).await??;
//! ```
//!
//! # Sessions
//!
//! A guest of the sessions contract implements [`sessions::Session`], a state machine that answers
//! events. Its timer is [`sessions::Answer::wake_after`]:
//!
//! ```ignore
//! use inet_guest::sessions::{Answer, Peer, Session, export};
//!
//! struct Upper;
//!
//! impl Session for Upper {
//!     fn new(_peer: Peer) -> Self {
//!         Self
//!     }
//!
//!     fn received(&mut self, bytes: Vec<u8>) -> Answer {
//!         Answer::send(bytes.to_ascii_uppercase())
//!     }
//! }
//!
//! export!(Upper);
//! ```
//!
//! # Building
//!
//! A guest is a crate of type `cdylib`, built for the target `wasm32-wasip2`.

#![warn(missing_docs)]

pub mod sessions;
pub mod streams;
mod time;

pub use time::{Elapsed, sleep, timeout};
