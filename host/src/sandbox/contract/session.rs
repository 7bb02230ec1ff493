//! One session in its instance: how it is made, and how it is called.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre, ResourceAny};

use super::migration::Migration;
use super::{End, Fault, OtherTypes, within};
use crate::bindings::session_service::inet::service::types;
use crate::bindings::{direct_session_service as direct_service, session_service as service};
use crate::buffer::Chunk;
use crate::half::Failure;
use crate::peer::Peer;
use crate::sandbox::direct;
use crate::sandbox::file_threads::on;
use crate::sandbox::state::State;

/// A component that serves by sessions, ready to be instantiated.
pub(in crate::sandbox) struct Sessions {
    pre: InstancePre<State>,
    direct: direct_service::SessionServiceIndices,
    on_fiber: service::SessionServiceIndices,
    migration: Option<Migration>,
}

/// One session, in its store.
pub(super) struct Session {
    pub(super) instance: Instance,
    pub(super) session: ResourceAny,
    of: Arc<Sessions>,
    // How it is called, once it was called so.
    direct: Option<direct_service::SessionService>,
    on_fiber: Option<service::SessionService>,
}

/// What has happened, of which the guest is told.
pub(super) enum Happened {
    Opened,
    Received(Chunk),
    Written,
    Woken,
    Ended(Result<(), Failure>),
}

/// What a guest answers.
pub(super) struct Answer {
    pub(super) send: Vec<u8>,
    pub(super) next: Next,
}

/// What comes after an answer.
pub(super) enum Next {
    GoOn,
    WhenWritten,
    WakeAfter(Duration),
    Finish,
    Reset(End),
}

impl Sessions {
    pub(super) fn new(pre: InstancePre<State>) -> wasmtime::Result<Self> {
        Ok(Self {
            direct: direct_service::SessionServiceIndices::new(&pre)?,
            on_fiber: service::SessionServiceIndices::new(&pre)?,
            migration: Migration::find(&pre)?,
            pre,
        })
    }

    pub(super) fn migrates(&self) -> bool {
        self.migration.is_some()
    }

    pub(super) fn migration(&self) -> Option<&Migration> {
        self.migration.as_ref()
    }

    /// Makes an instance, looks at the types of what it exports, and drops it.
    pub(super) async fn probe(&self, store: &mut Store<State>) -> wasmtime::Result<Instance> {
        let instance = self.instantiate(&mut *store).await?;
        let other_types = |error: wasmtime::Error| error.context(OtherTypes);
        self.on_fiber.load(&mut *store, &instance).map_err(other_types)?;
        if let Some(migration) = &self.migration {
            migration.load(store, &instance).map_err(other_types)?;
        }
        Ok(instance)
    }

    /// Makes an instance, on a fiber.
    pub(super) async fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Instance> {
        self.pre.instantiate_async(store).await
    }

    /// The `session` in `instance`, which is of this component.
    pub(super) fn session(self: &Arc<Self>, instance: Instance, session: ResourceAny) -> Session {
        Session {
            instance,
            session,
            of: Arc::clone(self),
            direct: None,
            on_fiber: None,
        }
    }

    /// Makes an instance, and a session in it.
    pub(super) async fn open(
        self: &Arc<Self>,
        store: &mut Store<State>,
        peer: &Peer,
    ) -> Result<Session, Fault> {
        match direct::call(store, |store| self.open_directly(store, peer))? {
            Some(session) => Ok(session),
            None => Box::pin(self.open_aside(store, peer)).await,
        }
    }

    fn open_directly(self: &Arc<Self>, store: &mut Store<State>, peer: &Peer) -> Result<Session, Fault> {
        let start = Instant::now();
        let instance = self.pre.instantiate(&mut *store).map_err(Fault::Start)?;
        let service = self.direct.load(&mut *store, &instance).map_err(Fault::Start)?;
        store.data().instantiated(start);
        let sessions = service.inet_service_sessions().session();
        let session = sessions.call_constructor(store, types::Peer::from(peer));
        Ok(Session {
            direct: Some(service),
            ..self.session(instance, session.map_err(Fault::Trap)?)
        })
    }

    /// The same where it cannot be done directly at once.
    async fn open_aside(self: &Arc<Self>, store: &mut Store<State>, peer: &Peer) -> Result<Session, Fault> {
        while !direct::fiber(store).await {
            if let Some(session) = direct::call(store, |store| self.open_directly(store, peer))? {
                return Ok(session);
            }
        }
        let (max, start) = (store.data().max_call_time(), Instant::now());
        let files = store.data().open_files();
        let instance = on(files.clone(), self.instantiate(&mut *store));
        let instance = within(max, instance, Fault::Start).await?;
        let service = self.on_fiber.load(&mut *store, &instance).map_err(Fault::Start)?;
        store.data().instantiated(start);
        let sessions = service.inet_service_sessions().session();
        let call = on(files, sessions.call_constructor(store, types::Peer::from(peer)));
        let session = within(max, call, Fault::Trap).await?;
        Ok(Session {
            on_fiber: Some(service),
            ..self.session(instance, session)
        })
    }
}

impl Session {
    /// Tells the guest what has happened, and gives its answer.
    pub(super) async fn handle(
        &mut self,
        store: &mut Store<State>,
        happened: &Happened,
    ) -> Result<Answer, Fault> {
        match direct::call(store, |store| self.handle_directly(store, happened))? {
            Some(answer) => Ok(answer),
            None => Box::pin(self.handle_aside(store, happened)).await,
        }
    }

    fn handle_directly(&mut self, store: &mut Store<State>, happened: &Happened) -> Result<Answer, Fault> {
        let service = match &self.direct {
            Some(service) => service,
            None => {
                let service = self.of.direct.load(&mut *store, &self.instance);
                self.direct.insert(service.map_err(Fault::Trap)?)
            }
        };
        let sessions = service.inet_service_sessions().session();
        let answer = sessions.call_handle(store, self.session, happened.into());
        Ok(answer.map_err(Fault::Trap)?.into())
    }

    /// The same where it cannot be done directly at once.
    async fn handle_aside(&mut self, store: &mut Store<State>, happened: &Happened) -> Result<Answer, Fault> {
        while !direct::fiber(store).await {
            if let Some(answer) = direct::call(store, |store| self.handle_directly(store, happened))? {
                return Ok(answer);
            }
        }
        let (max, files) = (store.data().max_call_time(), store.data().open_files());
        let service = match &self.on_fiber {
            Some(service) => service,
            None => {
                let service = self.of.on_fiber.load(&mut *store, &self.instance);
                self.on_fiber.insert(service.map_err(Fault::Trap)?)
            }
        };
        let sessions = service.inet_service_sessions().session();
        let call = on(files, sessions.call_handle(store, self.session, happened.into()));
        Ok(within(max, call, Fault::Trap).await?.into())
    }
}

/// The words of the contract for an event and an answer, which either way to call it has types of its own for.
macro_rules! words {
    ($($world:ident)*) => { $(
        impl<'a> From<&'a Happened> for $world::exports::inet::service::sessions::Event<'a> {
            fn from(happened: &'a Happened) -> Self {
                match happened {
                    Happened::Opened => Self::Opened,
                    Happened::Received(chunk) => Self::Received(chunk),
                    Happened::Written => Self::Written,
                    Happened::Woken => Self::Woken,
                    Happened::Ended(ended) => Self::Ended((*ended).map_err(types::ErrorCode::from)),
                }
            }
        }

        impl From<$world::exports::inet::service::sessions::Answer> for Answer {
            fn from(answer: $world::exports::inet::service::sessions::Answer) -> Self {
                use $world::exports::inet::service::sessions::Next as Theirs;
                Self {
                    send: answer.send,
                    next: match answer.next {
                        Theirs::GoOn => Next::GoOn,
                        Theirs::WhenWritten => Next::WhenWritten,
                        Theirs::WakeAfter(nanoseconds) => Next::WakeAfter(Duration::from_nanos(nanoseconds)),
                        Theirs::Finish => Next::Finish,
                        Theirs::Reset(code) => Next::Reset(code.into()),
                    },
                }
            }
        }
    )* };
}

words! { service direct_service }
