//! Guests in Rust, with less to write than by `wit-bindgen` alone and nothing in the way of it: what is here is a thin
//! layer over the bindings, which are there too, in [`streams::bindings`] and [`sessions::bindings`].
//!
//! A guest by the streams contract is a [`streams::Service`], an `async` function that reads and writes:
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
//! A guest by the sessions contract is a [`sessions::Session`], a state machine that answers events:
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
//! Either stands in a crate of type `cdylib`, built for `wasm32-wasip2`.

#![warn(missing_docs)]

pub mod sessions;
pub mod streams;
