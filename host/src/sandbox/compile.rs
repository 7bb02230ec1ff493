//! Compiling the content of a service, where the cache has no code for it.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Sandbox;
use super::cache::{self, Cache};
use super::code::Code;
use super::compiler::{Failure, Place, Turn};
use super::content::Content;
use super::engine::{Engine, code_settings, to_compile};
use super::examine::Examination;
use super::extent::{Extent, code_size};
use super::generation::line;
use super::load_error::LoadError;
use super::needs::Needs;
use crate::config::{CacheDir, Setting};
use crate::system::storage_advice;

/// Bytes of a component from which on the log says at once that it is compiled.
const LARGE: usize = 4 << 20;

/// How long a smaller component is compiled before the log says so.
const LONG: Duration = Duration::from_secs(3);

/// A component whose code is in the cache.
#[derive(Debug)]
pub struct Ahead {
    /// The file of its code.
    pub entry: PathBuf,
    /// How long it took to compile it, and bytes of memory that this took; `None` if the cache had
    /// its code before.
    pub compiled: Option<(Duration, u64)>,
}

/// What was compiled, and what became of it.
pub(super) struct Anew {
    pub(super) code: Code,
    /// Bytes of memory that the compiler took, where it had a process of its own.
    peak: u64,
    /// The entry of the cache; `None` without a cache.
    entry: Option<io::Result<PathBuf>>,
}

/// Bytes of memory that the compiler takes for each byte of code when it inlines, at most: it then
/// holds all functions at once. CPython takes 850, and a module of equal functions 130.
const INLINING: u64 = 1000;

/// Returns the error of a load for which a child process failed.
fn not_done(content: &Content, failure: Failure) -> LoadError {
    match failure {
        Failure::Refused(refusal) => content.refused(refusal),
        failure => LoadError::Sandbox(failure.to_string()),
    }
}

impl Sandbox {
    /// Compiles a component into the cache, for a start that loads it on the same terms.
    ///
    /// # Errors
    ///
    /// It cannot be compiled, or the cache cannot be used.
    pub async fn compile_ahead(&self, content: &Content) -> Result<Ahead, LoadError> {
        let unusable = |reason: &str| LoadError::Ahead {
            name: content.name.clone(),
            reason: reason.to_owned(),
        };
        let opened = self.cache.get_or_init(|| Cache::choose(&self.compiler.cache));
        let cache = match opened {
            Ok(Some(cache)) => cache,
            Ok(None) => {
                let cache = Setting::of("cache");
                return Err(unusable(&format!(
                    "there is no cache; set {cache} to a directory"
                )));
            }
            Err(error) => return Err(unusable(&format!("cannot use the cache {error}"))),
        };
        let turn = self.turn_to_compile(content).await;
        let whole = self.whole(content, Some(&turn)).await?;
        let engine = self.engine_for(&whole, &Extent::of(whole.bytes()))?;
        if cache
            .get(engine.engine(), &whole, self.granted.service())
            .is_some()
        {
            return Ok(Ahead {
                entry: cache.entry(engine.engine(), &whole),
                compiled: None,
            });
        }
        let start = Instant::now();
        let anew = self.compile_anew(&engine, &whole, Some(&turn)).await?;
        match anew.entry {
            Some(Ok(entry)) => Ok(Ahead {
                entry,
                compiled: Some((start.elapsed(), anew.peak)),
            }),
            Some(Err(error)) => {
                let advice = storage_advice(&error).map(|advice| format!("; {advice}"));
                let advice = advice.unwrap_or_default();
                Err(unusable(&format!(
                    "the cache cannot be written to: {error}{advice}"
                )))
            }
            None => Err(unusable("there is no cache")),
        }
    }

    /// Waits until a component may be loaded: one that has to be compiled waits for its turn.
    ///
    /// Returns `None` if the cache has an entry of the component. If the entry cannot be used, a load
    /// without a turn fails, and [`Sandbox::turn_to_compile`] gives it one.
    pub(crate) async fn turn(&self, content: &Content) -> Option<Turn> {
        if !self.preinit && self.is_known(content) {
            return None;
        }
        Some(self.turn_to_compile(content).await)
    }

    /// Waits until no other component of the host is compiled. Drop the turn when the component was
    /// loaded.
    ///
    /// The wait is no part of the time that a load may take. It has no limit of its own, but each
    /// load before it in the queue has.
    pub(crate) async fn turn_to_compile(&self, content: &Content) -> Turn {
        let (service, name) = (self.granted.service(), &content.name);
        let waits = || info!(service, "{name} waits until another component is compiled");
        self.compiler.turn(waits).await
    }

    /// Returns whether the cache has code of a component, which may have to be compiled again all
    /// the same.
    fn is_known(&self, content: &Content) -> bool {
        self.cache()
            .is_some_and(|cache| cache.has_any(content, self.preinit))
    }

    /// Has a process that is bounded do first what the host is about to do with a component before
    /// it is compiled, unless that has happened before.
    ///
    /// # Errors
    ///
    /// That takes more than the bounds, or the process cannot be started.
    pub(super) async fn examine(&self, content: &Content) -> Result<(), LoadError> {
        if self.is_known(content) {
            return Ok(());
        }
        let examination = Examination {
            preinit: self.preinit,
            validate: false,
        };
        self.examine_in_child(content, examination).await
    }

    /// Does the same for a component that is only checked.
    ///
    /// # Errors
    ///
    /// As with [`Sandbox::examine`].
    pub(super) async fn examine_to_check(&self, content: &Content) -> Result<(), LoadError> {
        let examination = Examination {
            preinit: self.preinit,
            validate: true,
        };
        self.examine_in_child(content, examination).await
    }

    /// Does the same for a part whose imports alone are checked.
    ///
    /// # Errors
    ///
    /// As with [`Sandbox::examine`].
    pub(super) async fn examine_part(&self, part: &Content) -> Result<(), LoadError> {
        let examination = Examination {
            preinit: false,
            validate: true,
        };
        self.examine_in_child(part, examination).await
    }

    async fn examine_in_child(&self, content: &Content, examination: Examination) -> Result<(), LoadError> {
        let Place::InChild(bounds) = &self.compiler.place else {
            return Ok(());
        };
        let parts = content.parts().iter().map(Content::shared_bytes).collect();
        let start = Instant::now();
        let peak = bounds
            .examine(examination, parts)
            .await
            .map_err(|failure| not_done(content, failure))?;
        let (service, duration_ms) = (self.granted.service(), start.elapsed().as_millis() as u64);
        debug!(service, peak, duration_ms, "examined in a process of its own");
        Ok(())
    }

    /// Returns whether functions are inlined: if the component needs it, and either the compiler
    /// has memory for that or it was done ahead.
    pub(super) fn can_inline(&self, needs: Needs, content: &Content) -> bool {
        if !needs.inlining {
            return false;
        }
        let Some(memory) = self.compiler.memory() else {
            return true;
        };
        let estimate = code_size(content.bytes()).saturating_mul(INLINING);
        estimate <= memory || self.is_inlined_ahead(needs, content)
    }

    fn is_inlined_ahead(&self, needs: Needs, content: &Content) -> bool {
        let engine = to_compile(code_settings(needs, true), false);
        match (self.cache(), engine) {
            (Some(cache), Ok(engine)) => cache.has(&engine, content),
            _ => false,
        }
    }

    /// Compiles a valid component or module without the code of its functions, for the engine that
    /// fits it with that code.
    ///
    /// # Errors
    ///
    /// It is too large, or cannot be compiled.
    pub(super) async fn compile_hollow(
        &self,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<(Engine, Code), LoadError> {
        let engine = self.engine_for(content, &Extent::of(content.bytes()))?;
        let code = self.compile_anew(&engine, &content.hollow(), turn).await?.code;
        Ok((engine, code))
    }

    /// Compiles a component or module for `engine`, and puts the code into the cache.
    ///
    /// # Errors
    ///
    /// It cannot be compiled, or there is no `turn`.
    pub(super) async fn compile_anew(
        &self,
        engine: &Engine,
        content: &Content,
        turn: Option<&Turn>,
    ) -> Result<Anew, LoadError> {
        turn.ok_or(LoadError::NoTurn)?;
        let Place::InChild(bounds) = &self.compiler.place else {
            return self.compile_here(engine, content);
        };
        let (service, start) = (self.granted.service(), Instant::now());
        let compiling = bounds.compile(engine.code_settings(), content.shared_bytes());
        let (compiled, is_announced) = self.announce_if_long(content, compiling).await;
        let compiled = compiled.map_err(|failure| not_done(content, failure))?;
        debug!(service, peak = compiled.peak, "compiled in a process of its own");
        // What cannot be used is not kept.
        let code = cache::deserialize(engine.engine(), &compiled.code)
            .map_err(|error| LoadError::Sandbox(Failure::Answer(line(&error)).to_string()))?;
        let entry = self.keep(engine, content, &compiled.code);
        if is_announced {
            info!(service, "compiled {} in {:.1?}", content.name, start.elapsed());
        }
        Ok(Anew {
            code,
            peak: compiled.peak,
            entry,
        })
    }

    /// Waits until a component is compiled. If it is large or takes long, the log says that it is
    /// being compiled. Returns also whether the log has said so.
    async fn announce_if_long<T>(&self, content: &Content, compiling: impl Future<Output = T>) -> (T, bool) {
        let mut compiling = pin!(compiling);
        let size = content.bytes().len();
        if size <= LARGE
            && let Ok(compiled) = timeout(LONG, &mut compiling).await
        {
            return (compiled, false);
        }
        let (service, name) = (self.granted.service(), &content.name);
        let size = ByteSize::b(size as u64).display().iec();
        let advice = match (self.cache(), &self.compiler.cache) {
            (Some(_), _) => "; the cache keeps its code",
            (None, CacheDir::Off) => "",
            (None, _) => "; with a cache that can be used, it is compiled only once",
        };
        info!(service, "compiling {name} ({size}), which takes a while{advice}");
        (compiling.await, true)
    }

    fn compile_here(&self, engine: &Engine, content: &Content) -> Result<Anew, LoadError> {
        let code =
            Code::compile(engine.engine(), content.bytes()).map_err(|error| content.invalid(line(&error)))?;
        let bytes = self.cache().map(|_| code.serialize());
        let entry = bytes.and_then(|bytes| match bytes {
            Ok(bytes) => self.keep(engine, content, &bytes),
            Err(error) => Some(Err(io::Error::other(error))),
        });
        Ok(Anew { code, peak: 0, entry })
    }

    /// Puts code into the cache, if there is one. If it cannot be written, the log says so.
    fn keep(&self, engine: &Engine, content: &Content, code: &[u8]) -> Option<io::Result<PathBuf>> {
        let cache = self.cache()?;
        Some(cache.put(engine.engine(), content, code, self.granted.service()))
    }
}
