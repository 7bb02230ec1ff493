//! The contract of WASI's programs, `wasi:cli/run`: standard input and output are the halves of a connection.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Instance, InstancePre};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::{Command as Program, CommandPre};
use wasmtime_wasi::p3::bindings::{Command as ConcurrentProgram, CommandPre as ConcurrentPre};

use super::{Contract, End, Fault, OtherTypes, within};
use crate::half::Half;
use crate::peer::{Peer, Process};
use crate::sandbox::state::{ProgramKind, State};
use crate::sandbox::stdio::{Stdin, Stdout, Turned};
use crate::sandbox::waiters::{Asking, Seat};
use crate::sandbox::wasi::Release;

/// A program that is ready to be instantiated, by the version of WASI that it is written for.
pub(in crate::sandbox) enum Command {
    /// WASI 0.2.
    Plain(CommandPre<State>),
    /// WASI 0.3.
    Concurrent(ConcurrentPre<State>),
    /// WASI preview 1: a core module.
    Module(wasmtime::InstancePre<State>),
}

/// The function that runs a module.
const START: &str = "_start";

/// The memory of a module.
const MEMORY: &str = "memory";

/// The function that initializes a module which is a library, or "reactor".
const INITIALIZE: &str = "_initialize";

impl Command {
    /// Looks up the function that runs a program, by the release of WASI that [`Contract::export`]
    /// chooses.
    ///
    /// # Errors
    ///
    /// The function is not there, or has another type than in WASI.
    pub(super) fn new(pre: InstancePre<State>) -> wasmtime::Result<Self> {
        let component = pre.component();
        let ty = component.component_type();
        let exports: Vec<&str> = ty.exports(component.engine()).map(|(name, _)| name).collect();
        let interface = Contract::Cli.export(&exports).unwrap_or_default();
        // The bindings would name the version that they were generated from.
        let run = component
            .get_export_index(None, interface)
            .and_then(|interface| component.get_export(Some(&interface), "run"));
        if !run.is_some_and(|(item, _)| matches!(item, ComponentItem::ComponentFunc(_))) {
            wasmtime::bail!("`{interface}` has no function `run`");
        }
        match Release::of_interface(interface) {
            Some(Release::Three) => ConcurrentPre::new(pre).map(Self::Concurrent),
            _ => CommandPre::new(pre).map(Self::Plain),
        }
    }

    /// Takes a module that was linked.
    ///
    /// # Errors
    ///
    /// It is no program; the error says why.
    pub(super) fn of_module(pre: wasmtime::InstancePre<State>) -> Result<Self, &'static str> {
        let module = pre.module();
        let Some(start) = module.get_export(START) else {
            return Err(if module.get_export(INITIALIZE).is_some() {
                "it exports `_initialize` and no `_start`, so it is a reactor and not a command"
            } else {
                "it exports no function `_start`"
            });
        };
        let runs = start
            .func()
            .is_some_and(|ty| ty.params().len() == 0 && ty.results().len() == 0);
        if !runs {
            return Err("its export `_start` is not a function without parameters and results");
        }
        let memory = module
            .get_export(MEMORY)
            .is_some_and(|export| export.memory().is_some());
        if module.imports().len() > 0 && !memory {
            return Err("it exports no memory as `memory`, through which functions of WASI take arguments");
        }
        Ok(Self::Module(pre))
    }

    /// Makes an instance. Returns it if it is of a component.
    ///
    /// # Errors
    ///
    /// No instance can be made, or its `run` has another type than in WASI.
    pub(super) async fn probe(&self, store: &mut Store<State>) -> wasmtime::Result<Option<Instance>> {
        let other_types = |error: wasmtime::Error| error.context(OtherTypes);
        Ok(Some(match self {
            Self::Plain(pre) => {
                let instance = pre.instance_pre().instantiate_async(&mut *store).await?;
                Program::new(store, &instance).map_err(other_types)?;
                instance
            }
            Self::Concurrent(pre) => {
                let instance = pre.instance_pre().instantiate_async(&mut *store).await?;
                ConcurrentProgram::new(store, &instance).map_err(other_types)?;
                instance
            }
            Self::Module(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                instance
                    .get_typed_func::<(), ()>(store, START)
                    .map_err(other_types)?;
                return Ok(None);
            }
        }))
    }
}

/// Runs the program with one connection, and calls `started` once it has turned to that.
pub(super) async fn serve<R, W>(
    command: &Command,
    store: &mut Store<State>,
    peer: &Peer,
    inbound: &Half<R>,
    outbound: &Half<W>,
    started: impl FnOnce(),
) -> Result<End, Fault>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (Some(reader), Some(writer)) = (inbound.lend(), outbound.lend()) else {
        return Ok(End::Finished);
    };
    let turned = Turned::default();
    let stdin = Stdin::new(reader, turned.clone());
    let stdout = Stdout::new(writer, turned.clone());
    let kind = match command {
        Command::Plain(_) | Command::Concurrent(_) => ProgramKind::Component,
        Command::Module(_) => ProgramKind::Module,
    };
    store
        .data_mut()
        .make_program(kind, &ucspi(peer), stdin, stdout.clone());
    let (max, start) = (store.data().max_call_time(), Instant::now());
    let mut started = Some(started);
    let ran = match command {
        Command::Plain(pre) => {
            let program = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
            store.data().instantiated(start);
            noting(
                &stdout,
                &turned,
                &mut started,
                program.wasi_cli_run().call_run(store),
            )
            .await
        }
        Command::Concurrent(pre) => {
            let program = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
            store.data().instantiated(start);
            let run = store.run_concurrent(async |accessor| {
                let ran = program.wasi_cli_run().call_run(accessor).await?;
                // What it has written may still be on its way.
                poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                wasmtime::error::Ok(ran)
            });
            noting(&stdout, &turned, &mut started, async { run.await.flatten() }).await
        }
        Command::Module(pre) => {
            let instance = within(max, pre.instantiate_async(&mut *store), Fault::Start).await?;
            store.data().instantiated(start);
            let main = instance.get_typed_func::<(), ()>(&mut *store, START);
            let main = main.map_err(Fault::Start)?;
            let ran = noting(&stdout, &turned, &mut started, main.call_async(store, ())).await;
            ran.map(Ok)
        }
    };
    let status = match ran {
        Ok(Ok(())) => 0,
        Ok(Err(())) => 1,
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(status)) => *status,
            None => return Err(Fault::Trap(error)),
        },
    };
    if let Some(started) = started {
        started();
    }
    stdout.drained().await;
    Ok(End::Exited(status))
}

/// Runs a program, and calls `started` once it has turned to its connection. What it has written goes out whatever it
/// waits for.
async fn noting<W: AsyncWrite + Unpin, T>(
    stdout: &Stdout<W>,
    turned: &Turned,
    started: &mut Option<impl FnOnce()>,
    run: impl Future<Output = T>,
) -> T {
    let mut run = pin!(run);
    let mut seat: Pin<&mut Seat> = pin!(None);
    poll_fn(|cx| {
        let polled = run.as_mut().poll(cx);
        if turned.is_set()
            && let Some(started) = started.take()
        {
            started();
        }
        if polled.is_pending() {
            stdout.drain(Asking::new(seat.as_mut(), cx));
        }
        polled
    })
    .await
}

/// What a program finds in its environment of its connection, by the Unix client-server program interface
/// (<https://cr.yp.to/proto/ucspi.txt>), and of TLS, by the names that Apache's mod_ssl and sslserver have.
fn ucspi(peer: &Peer) -> Vec<(&'static str, String)> {
    let mut env = match (peer.local.strip_prefix("unix:"), peer.process) {
        (Some(path), Some(process)) => of_unix(path, process),
        _ => of_tcp(peer),
    };
    if let Some(tls) = &peer.tls {
        env.push(("SSL_PROTOCOL", tls.version.to_owned()));
        for (key, value) in [
            ("SSL_TLS_SNI", &tls.server_name),
            ("SSL_ALPN_PROTOCOL", &tls.protocol),
            ("SSL_CLIENT_S_DN", &tls.subject),
        ] {
            env.extend(value.clone().map(|value| (key, value)));
        }
    }
    env
}

fn of_tcp(peer: &Peer) -> Vec<(&'static str, String)> {
    let mut env = vec![("PROTO", "TCP".to_owned())];
    let ends = [
        (&peer.remote, "TCPREMOTEIP", "TCPREMOTEPORT"),
        (&peer.local, "TCPLOCALIP", "TCPLOCALPORT"),
    ];
    for (end, ip, port) in ends {
        if let Ok(address) = end.parse::<SocketAddr>() {
            env.extend([(ip, address.ip().to_string()), (port, address.port().to_string())]);
        }
    }
    env
}

/// The same of a socket of the file system, by the definition of `ucspi-unix`.
fn of_unix(path: &str, process: Process) -> Vec<(&'static str, String)> {
    let mut env = vec![
        ("PROTO", "UNIX".to_owned()),
        ("UNIXLOCALPATH", path.to_owned()),
        ("UNIXREMOTEEUID", process.uid.to_string()),
        ("UNIXREMOTEEGID", process.gid.to_string()),
    ];
    env.extend(process.pid.map(|pid| ("UNIXREMOTEPID", pid.to_string())));
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Tls;

    #[test]
    fn a_program_finds_both_ends_of_its_connection() {
        let peer = Peer {
            connection: 7,
            remote: "[2001:db8::7]:49152".into(),
            local: "192.0.2.1:8080".into(),
            listener: "test".into(),
            ..Peer::default()
        };
        let expected = [
            ("PROTO", "TCP"),
            ("TCPREMOTEIP", "2001:db8::7"),
            ("TCPREMOTEPORT", "49152"),
            ("TCPLOCALIP", "192.0.2.1"),
            ("TCPLOCALPORT", "8080"),
        ];
        assert_eq!(ucspi(&peer), expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn a_program_finds_what_tls_says() {
        let peer = Peer {
            tls: Some(Tls {
                version: "TLSv1.3",
                server_name: Some("example.org".into()),
                protocol: None,
                subject: Some("CN=alice".into()),
            }),
            ..Peer::default()
        };
        let expected = [
            ("PROTO", "TCP"),
            ("SSL_PROTOCOL", "TLSv1.3"),
            ("SSL_TLS_SNI", "example.org"),
            ("SSL_CLIENT_S_DN", "CN=alice"),
        ];
        assert_eq!(ucspi(&peer), expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn no_variable_of_a_connection_can_be_granted() {
        let tls = Tls {
            version: "TLSv1.3",
            server_name: Some("example.org".into()),
            protocol: Some("h2".into()),
            subject: Some("CN=alice".into()),
        };
        let process = Process {
            uid: 1000,
            gid: 100,
            pid: Some(4711),
        };
        let by_tcp = Peer {
            remote: "192.0.2.7:49152".into(),
            local: "192.0.2.1:8080".into(),
            tls: Some(tls),
            ..Peer::default()
        };
        let by_unix = Peer {
            local: "unix:/run/echo.sock".into(),
            process: Some(process),
            ..Peer::default()
        };
        let mut names: Vec<_> = [by_tcp, by_unix]
            .iter()
            .flat_map(ucspi)
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut reserved = crate::values::HOST_VARIABLES;
        reserved.sort_unstable();
        assert_eq!(names, reserved);
    }

    #[test]
    fn a_program_finds_who_has_come_by_a_socket_of_the_file_system() {
        let process = Process {
            uid: 1000,
            gid: 100,
            pid: Some(4711),
        };
        let peer = Peer {
            remote: format!("unix:{process}"),
            local: "unix:/run/echo.sock".into(),
            process: Some(process),
            ..Peer::default()
        };
        let expected = [
            ("PROTO", "UNIX"),
            ("UNIXLOCALPATH", "/run/echo.sock"),
            ("UNIXREMOTEEUID", "1000"),
            ("UNIXREMOTEEGID", "100"),
            ("UNIXREMOTEPID", "4711"),
        ];
        assert_eq!(ucspi(&peer), expected.map(|(key, value)| (key, value.to_owned())));
    }
}
