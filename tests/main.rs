//! The program as its users meet it: a real process, real sockets, real guests.

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "nothing outside this program sees it"
)]

mod harness;

mod access;
mod admin;
mod attack;
mod busy;
mod bytes;
mod cache;
mod capacity;
mod check;
mod command_line;
mod compile;
mod components;
mod descriptors;
mod disks;
mod documents;
mod drain;
mod faults;
mod grants;
mod guests;
mod haproxy;
mod hostile;
mod isolation;
mod languages;
mod lifts;
mod limits;
mod log;
mod memory;
mod middleware;
mod migrate;
mod pools;
mod preinit;
mod profile;
mod programs;
mod proxy_protocol;
mod redis;
mod relay;
mod replay;
mod rollback;
mod services;
mod shared;
mod swap;
mod systemd;
mod telemetry;
mod terminal;
mod tls;
mod unix;
