//! Signals, turned into notices.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// SIGINT or SIGTERM, by its name: to stop.
    Stop(&'static str),
    /// SIGHUP: to load the component again.
    Reload,
    /// SIGUSR2: to go back to the generation before this one.
    GoBack,
}

/// Waits for signals.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    /// Takes the signals over from now on.
    ///
    /// # Errors
    ///
    /// The system refuses the handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
        })
    }

    /// What the next signal asks for.
    pub async fn next(&mut self) -> Notice {
        tokio::select! {
            _ = self.interrupt.recv() => Notice::Stop("SIGINT"),
            _ = self.terminate.recv() => Notice::Stop("SIGTERM"),
            _ = self.hangup.recv() => Notice::Reload,
            _ = self.user.recv() => Notice::GoBack,
        }
    }

    /// The name of the next signal that asks to stop, passing over others.
    pub async fn stop(&mut self) -> &'static str {
        loop {
            if let Notice::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}
