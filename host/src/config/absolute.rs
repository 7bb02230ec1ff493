//! Paths that mean the same in every directory.

use std::io;
use std::path::{self, PathBuf};

use super::{Address, CacheDir, Config, Listen, Service};

impl Config {
    /// Makes each path absolute, so that the configuration means the same wherever it is written.
    ///
    /// # Errors
    ///
    /// The current directory cannot be determined.
    pub fn make_paths_absolute(&mut self) -> io::Result<()> {
        let Self {
            services,
            cache,
            admin,
            threads: _,
            drain_timeout: _,
            max_compile_memory: _,
            log: _,
            otlp: _,
        } = self;
        if let CacheDir::At(dir) = cache {
            make_absolute(dir)?;
        }
        if let Some(admin) = admin {
            make_address_absolute(&mut admin.address)?;
            admin.token.as_mut().map_or(Ok(()), make_absolute)?;
        }
        services.iter_mut().try_for_each(make_service_absolute)
    }
}

fn make_service_absolute(service: &mut Service) -> io::Result<()> {
    let files = [&mut service.component, &mut service.gate, &mut service.record];
    for path in files.into_iter().flatten().chain(&mut service.middleware) {
        make_absolute(path)?;
    }
    for dir in &mut service.grants.dirs {
        make_absolute(&mut dir.host)?;
    }
    let others = &mut service.grants.writable_by_others;
    others.iter_mut().try_for_each(make_absolute)?;
    service.listen.iter_mut().try_for_each(make_listen_absolute)
}

fn make_listen_absolute(listen: &mut Listen) -> io::Result<()> {
    make_address_absolute(&mut listen.address)?;
    let Some(tls) = &mut listen.tls else {
        return Ok(());
    };
    for identity in &mut tls.identities {
        make_absolute(&mut identity.certificate)?;
        make_absolute(&mut identity.key)?;
    }
    match &mut tls.clients {
        Some(clients) => make_absolute(&mut clients.authorities),
        None => Ok(()),
    }
}

fn make_address_absolute(address: &mut Address) -> io::Result<()> {
    match address {
        Address::Unix(path) => make_absolute(path),
        Address::Tcp(_) | Address::Abstract(_) | Address::Inherited(_) => Ok(()),
    }
}

fn make_absolute(path: &mut PathBuf) -> io::Result<()> {
    *path = path::absolute(&*path)?;
    Ok(())
}
