//! Moving a session to another generation: a snapshot out of its guest, and into a new one.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Instance, InstancePre, Type};

use super::session::{Session, Sessions};
use super::{Contract, CpuLimit, Fault, within};
use crate::bindings::movable_session_service::exports::inet::service::migration::{
    Guest, GuestIndices, Refusal, SavedStateParam, SavedStateResult,
};
use crate::bindings::movable_session_service::inet::service::types;
use crate::peer::Peer;
use crate::sandbox::diagnostics::Speaker;
use crate::sandbox::file_threads::on;
use crate::sandbox::generation::Generation;
use crate::sandbox::seat::{Offer, Seat, Stays};
use crate::sandbox::state::State;

/// The interface that a component exports for it.
pub(in crate::sandbox) const INTERFACE: &str = "inet:service/migration@0.1.0";

/// The interface of the sessions that it moves.
const SESSIONS: &str = Contract::Sessions.interface();

/// How long each call may take that moves a session, where --max-call-time does not say: others wait for their turn.
const MAX_CALL: Duration = Duration::from_secs(10);

/// What of a component moves its sessions.
pub(super) struct Migration(GuestIndices);

impl Migration {
    /// Finds the functions of the interface, if the component exports it.
    ///
    /// # Errors
    ///
    /// A function is missing, or takes or returns a resource that is not the `session` of the
    /// contract.
    pub(super) fn find(pre: &InstancePre<State>) -> wasmtime::Result<Option<Self>> {
        let component = pre.component();
        if component.get_export_index(None, INTERFACE).is_none() {
            return Ok(None);
        }
        let indices = GuestIndices::new(pre)?;
        // The bindings check all types but this one: to them, each resource is of any type.
        if !moves_sessions(component).unwrap_or(false) {
            return Err(wasmtime::format_err!(
                "`{INTERFACE}` does not move the `session` of `{SESSIONS}`, but a resource of its own"
            ));
        }
        Ok(Some(Self(indices)))
    }

    /// Its functions in `instance`.
    ///
    /// # Errors
    ///
    /// They are of other types than the contract has.
    pub(super) fn load(&self, store: &mut Store<State>, instance: &Instance) -> wasmtime::Result<Guest> {
        self.0.load(store, instance)
    }
}

/// Returns whether the functions of the interface take and return the `session` that the component
/// exports for the contract; `None` if one of them has another type altogether.
fn moves_sessions(component: &Component) -> Option<bool> {
    let engine = component.engine();
    let ty = component.component_type();
    let instance = |name| match ty.get_export(engine, name)?.ty {
        ComponentItem::ComponentInstance(instance) => Some(instance),
        _ => None,
    };
    let ComponentItem::Resource(session) = instance(SESSIONS)?.get_export(engine, "session")?.ty else {
        return None;
    };
    let migration = instance(INTERFACE)?;
    let function = |name| match migration.get_export(engine, name)?.ty {
        ComponentItem::ComponentFunc(function) => Some(function),
        _ => None,
    };
    let (_, taken) = function("snapshot")?.params().next()?;
    let Type::Result(returned) = function("restore")?.results().next()? else {
        return None;
    };
    Some(taken == Type::Borrow(session) && returned.ok()? == Type::Own(session))
}

/// Has the session go on in the generation on offer, if it can. Says whether it may be asked again before anything else
/// happens: where it has moved, or is to stay for good.
///
/// # Errors
///
/// The session's own guest fails.
pub(super) async fn attempt<'a, S: Seat>(
    seat: &'a S,
    offer: S::Offer<'a>,
    session: &mut Session,
    store: &mut Store<State>,
    peer: &Peer,
) -> Result<bool, Fault> {
    let (from, to) = (seat.generation(), Arc::clone(offer.generation()));
    let (Some((_, from)), Some((sessions, migration))) = (movable(&from), movable(&to)) else {
        offer.decline(Stays::Unable);
        return Ok(true);
    };
    let guest = from.load(&mut *store, &session.instance).map_err(Fault::Trap)?;
    let Some(state) = snapshot(&guest, session, store).await? else {
        offer.decline(Stays::Busy);
        return Ok(false);
    };
    // Both instances are there for a moment.
    let logged = store.data_mut().logged();
    // Others wait for their turn to move.
    let opened = match to.open_within(MAX_CALL).await {
        Ok(opened) => opened,
        Err(error) => {
            offer.decline(Stays::Failed(Fault::Grant(error)));
            return Ok(true);
        }
    };
    let speaker = Speaker::Connection(peer.connection);
    let mut other = to.store(speaker, Some(logged), Some(&seat.cost()), opened);
    match restore(sessions, migration, &mut other, peer, &state).await {
        Ok(Ok(restored)) => {
            *session = restored;
            *store = other;
            offer.accept();
        }
        Ok(Err(refusal)) => offer.decline(Stays::Refused(word(refusal))),
        Err(fault) => offer.decline(Stays::Failed(fault)),
    }
    Ok(true)
}

fn movable(generation: &Generation) -> Option<(&Arc<Sessions>, &Migration)> {
    let sessions = generation.prepared.sessions()?;
    Some((sessions, sessions.migration()?))
}

async fn snapshot(
    guest: &Guest,
    session: &Session,
    store: &mut Store<State>,
) -> Result<Option<SavedStateResult>, Fault> {
    let ticker = Arc::clone(store.data().ticker());
    let max = store.data().max_call_time();
    ticker.take_turns().await;
    store.set_epoch_deadline(1);
    let files = store.data().open_files();
    let call = on(files, guest.call_snapshot(store, session.session));
    in_turn(max, call, Fault::Trap).await
}

async fn restore(
    sessions: &Arc<Sessions>,
    migration: &Migration,
    store: &mut Store<State>,
    peer: &Peer,
    state: &SavedStateResult,
) -> Result<Result<Session, Refusal>, Fault> {
    let max = store.data().max_call_time();
    let files = store.data().open_files();
    let instance = on(files.clone(), sessions.instantiate(&mut *store));
    let instance = in_turn(max, instance, Fault::Start).await?;
    let guest = migration.load(&mut *store, &instance).map_err(Fault::Start)?;
    let peer = types::Peer::from(peer);
    let state = SavedStateParam {
        version: state.version,
        bytes: &state.bytes,
    };
    let call = on(files, guest.call_restore(store, peer, state));
    let restored = in_turn(max, call, Fault::Trap).await?;
    Ok(restored.map(|session| sessions.session(instance, session)))
}

/// The same as [`within`] for a call that others wait for.
async fn in_turn<T>(
    max: Option<Duration>,
    call: impl Future<Output = wasmtime::Result<T>>,
    fault: fn(wasmtime::Error) -> Fault,
) -> Result<T, Fault> {
    match within(max.or(Some(MAX_CALL)), call, fault).await {
        Err(Fault::Cpu(CpuLimit::Call(_))) if max.is_none() => Err(Fault::Cpu(CpuLimit::Move(MAX_CALL))),
        called => called,
    }
}

fn word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownVersion => "unknown-version",
        Refusal::Malformed => "malformed",
        Refusal::Other => "other",
    }
}
