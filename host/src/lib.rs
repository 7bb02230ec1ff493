//! A host for network services in WebAssembly components: inetd, with a sandbox in place of a process.
//!
//! The program `host` is this library behind a command line. `ARCHITECTURE.md` says what is where and why.

// Where it is allowed, it is argued for.
#![deny(unsafe_code)]

mod acceptor;
mod admin;
pub mod admission;
mod arrival;
mod bindings;
pub mod breaker;
mod buffer;
pub mod check;
pub mod cli;
pub mod config;
pub mod connection;
pub mod conversation;
pub mod cost;
#[cfg(test)]
mod counting_task;
mod counts;
mod deadlines;
mod failpoint;
pub mod file;
mod generations;
pub mod half;
pub mod listener;
pub mod logging;
pub mod peer;
mod place;
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
pub mod tls;
mod values;
