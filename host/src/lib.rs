//! Serves network connections with WebAssembly components, one sandboxed instance per connection.
//!
//! The program `wasm-inetd` is this library behind a command line. `ARCHITECTURE.md` maps the source
//! files, and `docs/decisions/` explains the design.

// The one exception states its argument.
#![deny(unsafe_code)]

mod acceptor;
mod admin;
pub mod admission;
mod arrival;
mod base64;
mod bindings;
pub mod breaker;
mod buffer;
pub mod check;
pub mod cli;
pub mod compile;
pub mod config;
pub mod connection;
pub mod conversation;
pub mod cost;
#[cfg(test)]
mod counting_task;
mod counts;
mod deadlines;
mod encoding;
mod failpoint;
pub mod file;
mod file_id;
mod file_work;
mod generations;
mod granted_dir;
mod guarded;
pub mod half;
pub mod listener;
pub mod logging;
mod mounts;
pub mod peer;
mod place;
pub mod preflight;
pub mod profile;
pub mod proxy_protocol;
mod record;
mod relay;
mod reload;
pub mod replay;
mod reread;
mod roster;
mod running;
pub mod sandbox;
pub mod scaffold;
mod seldom;
pub mod server;
mod service;
pub mod service_manager;
pub mod shutdown;
pub mod socket;
mod stamp;
pub mod system;
mod telemetry;
pub mod terminal;
pub mod threads;
pub mod tls;
mod trial;
mod values;
mod whole_file;
