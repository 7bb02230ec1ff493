//! What can be asked for, and who may.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::stream;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_SECURITY_POLICY, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{HeaderMap, Method, Request, StatusCode, Version};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use super::answer::{Answer, and, events, json, json_list, refused, text, whole};
use super::exposition::Exposition;
use super::slots::{Class, Slot};
use super::view;
use super::watch::LOOK;
use super::{Admin, CurrentToken, is_no_name, metrics, token};
use crate::generations::Closed;
use crate::service::ReloadRequest;
use crate::values;

/// The page, which takes a fresh nonce each time.
const PAGE: &str = include_str!("page.html");

/// What in the page stands for the nonce.
const NONCE: &str = "NONCE";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Page,
    Events,
    Metrics,
    Alive,
    Ready,
    Connections,
    Generations,
    Change(Change<'a>),
}

/// What is to be changed.
#[derive(Debug, PartialEq, Eq)]
enum Change<'a> {
    /// A connection is to be closed.
    Close(u64),
    /// The component of a service is to be loaded again.
    Reload(&'a str),
    /// A service is to go back to the generation before.
    Rollback(&'a str),
    Drain,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Page,
            "/events" => Self::Events,
            "/metrics" => Self::Metrics,
            "/healthz" => Self::Alive,
            "/readyz" => Self::Ready,
            "/connections" => Self::Connections,
            "/generations" => Self::Generations,
            "/drain" => Self::Change(Change::Drain),
            other => match other.strip_prefix('/')?.split('/').collect::<Vec<_>>().as_slice() {
                ["connections", number, "close"] => Self::Change(Change::Close(values::number(number)?)),
                ["services", service, "reload"] => Self::Change(Change::Reload(service)),
                ["services", name, "rollback"] => Self::Change(Change::Rollback(name)),
                _ => return None,
            },
        })
    }
}

/// Answers a request, on the connection that holds `slot`.
pub(super) async fn answer(
    admin: &Arc<Admin>,
    slot: &Slot,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let host = match host(&request) {
        Ok(host) => host,
        Err(why) => return Ok(refused(StatusCode::BAD_REQUEST, why)),
    };
    let Some(route) = Route::of(request.uri().path()) else {
        return Ok(refused(StatusCode::NOT_FOUND, "no such path; see /"));
    };
    let (method, headers) = (request.method(), request.headers());
    // A name could be one that another site has pointed here, for its page to look at what it must not.
    let by_scraper = matches!(route, Route::Metrics | Route::Alive | Route::Ready);
    if admin.loopback && !by_scraper && !host.is_none_or(is_no_name) {
        let why = "the Host header is a domain name; use an IP address or localhost";
        return Ok(refused(StatusCode::MISDIRECTED_REQUEST, why));
    }
    let changes = matches!(route, Route::Change(_));
    match *method {
        Method::POST if changes => {}
        Method::GET | Method::HEAD if !changes => {}
        _ => {
            let (why, allowed) = if changes {
                ("this path makes a change; use POST", "POST")
            } else {
                ("this path is read-only; use GET", "GET, HEAD")
            };
            return Ok(and(refused(StatusCode::METHOD_NOT_ALLOWED, why), ALLOW, allowed));
        }
    }
    if changes && let Err((status, why)) = may_change(admin, host, headers) {
        let answer = refused(status, why);
        return Ok(match status {
            StatusCode::UNAUTHORIZED => and(answer, WWW_AUTHENTICATE, "Bearer"),
            _ => answer,
        });
    }
    let by_operator = has_token(admin, headers) == Some(true);
    let class = match route {
        // An answer to HEAD has no body to watch.
        Route::Events if by_operator && method == Method::GET => Class::OperatorWatch,
        Route::Events if method == Method::GET => Class::Watch,
        _ if by_operator => Class::Operator,
        _ if by_scraper => Class::Probe,
        _ => Class::Read,
    };
    if !slot.take(class) {
        let why = match class {
            Class::Watch => {
                "too many readers of /events; close another page, or send the admin token in the \
                 header `Authorization: Bearer TOKEN`"
            }
            _ => "too many requests of this kind at once; try again",
        };
        let busy = refused(StatusCode::SERVICE_UNAVAILABLE, why);
        return Ok(and(busy, RETRY_AFTER, "1"));
    }
    Ok(match route {
        Route::Page => page(),
        Route::Events if method == Method::HEAD => events(stream::empty()),
        Route::Events => look(admin),
        Route::Metrics => {
            let exposition = Exposition::accepted(headers);
            match metrics::encode(&admin.process, exposition) {
                Ok(text) => whole(StatusCode::OK, exposition.content_type(), text),
                Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics"),
            }
        }
        Route::Alive => text(StatusCode::OK, "alive\n"),
        Route::Ready => {
            let state = view::state(&admin.process);
            let status = if state == view::SERVING {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            text(status, format!("{state}\n"))
        }
        Route::Connections => {
            let now = Instant::now();
            let (open, ()) = admin.process.open(|| ());
            let connections = open.iter().map(|open| view::connection(open, now));
            json_list("connections", connections).await
        }
        Route::Generations => {
            #[derive(Serialize)]
            struct Generations {
                generations: Vec<view::GenerationView>,
            }
            let generations = view::generations(&admin.process);
            json(StatusCode::OK, &Generations { generations })
        }
        Route::Change(change) => match forced(&change, request.uri().query()) {
            Ok(force) => make(admin, &change, force),
            Err(why) => refused(StatusCode::BAD_REQUEST, why),
        },
    })
}

/// Whom a request names as its host. An absolute URI comes before the header (RFC 9112, section
/// 3.2).
///
/// # Errors
///
/// There is not exactly one such header, or it is not ASCII.
fn host<B>(request: &Request<B>) -> Result<Option<&str>, &'static str> {
    let mut headers = request.headers().get_all(HOST).iter();
    let header = match (headers.next(), headers.next()) {
        (Some(_), Some(_)) => return Err("the request has more than one Host header; send one"),
        (None, _) if request.version() == Version::HTTP_11 => {
            return Err("the request has no Host header, which HTTP/1.1 requires; send one");
        }
        (header, _) => header,
    };
    let header = header.map(|header| header.to_str()).transpose();
    let header =
        header.map_err(|_| "the Host header is not visible ASCII; send an IP address or localhost")?;
    Ok(request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or(header))
}

/// Whether a request bears the admin token; `None` if it bears none at all.
fn has_token(admin: &Admin, headers: &HeaderMap) -> Option<bool> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, given) = value.split_once(' ')?;
    let right = |token: &CurrentToken| token.is(given.trim());
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| admin.token.as_ref().is_some_and(right))
}

/// Whether who asks may change anything.
fn may_change(
    admin: &Admin,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), (StatusCode, &'static str)> {
    let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // A browser says where the page comes from that has it ask (Fetch Metadata, and RFC 6454).
    let site = of("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    let origin = of(ORIGIN.as_str()).is_none_or(|origin| {
        let at = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        at.is_some() && at == host
    });
    if !site || !origin {
        let why = "the request comes from another site; use the page of this host at /";
        return Err((StatusCode::FORBIDDEN, why));
    }
    if admin.token.is_none() {
        let why = "changes are disabled; start the host with --admin-token, or set `token` in \
                   `[admin]`";
        return Err((StatusCode::FORBIDDEN, why));
    }
    let why = match has_token(admin, headers) {
        Some(true) => return Ok(()),
        Some(false) => "the admin token is wrong",
        None => "a change needs the admin token; send the header `Authorization: Bearer TOKEN`",
    };
    Err((StatusCode::UNAUTHORIZED, why))
}

/// Returns whether the query of a change has `force`, with which a reload also loads a component
/// that was rolled back.
///
/// # Errors
///
/// The query has something else.
fn forced(change: &Change<'_>, query: Option<&str>) -> Result<bool, &'static str> {
    let mut force = false;
    let parameters = query.unwrap_or_default().split('&');
    for parameter in parameters.filter(|parameter| !parameter.is_empty()) {
        match (change, parameter) {
            (Change::Reload(_), "force" | "force=1" | "force=true") => force = true,
            (Change::Reload(_), other) if other.starts_with("force=") => {
                return Err("the parameter `force` has an unknown value; send `force=1`, or omit it");
            }
            (Change::Reload(_), _) => {
                return Err("the query has an unknown parameter; a reload takes only `force`");
            }
            _ => return Err("this path takes no parameters; omit the query"),
        }
    }
    Ok(force)
}

/// Does what is asked for, by `force` if that is set.
fn make(admin: &Admin, change: &Change<'_>, force: bool) -> Answer {
    let process = &admin.process;
    let services = process.services.load();
    let service = |name: &str| {
        // A name may have any character.
        let name = percent_decode_str(name).decode_utf8().ok()?;
        services.iter().find(|service| service.config.name == name)
    };
    let no_service = || refused(StatusCode::NOT_FOUND, "there is no service with this name");
    let is_draining = process.draining.load(Relaxed);
    let conflict = |why: &dyn Display| refused(StatusCode::CONFLICT, &why.to_string());
    let drains = || conflict(&Closed::Draining);
    match *change {
        Change::Close(connection) => {
            match process
                .roster
                .as_ref()
                .and_then(|roster| roster.close(connection))
            {
                Some(service) => {
                    info!(
                        service = service.config.name,
                        connection, "connection close requested"
                    );
                    done("closing")
                }
                None => refused(
                    StatusCode::NOT_FOUND,
                    "there is no open connection with this number",
                ),
            }
        }
        Change::Reload(name) => match service(name) {
            None => no_service(),
            Some(_) if is_draining => drains(),
            Some(service) => {
                let (asked, insists) = (Instant::now(), force);
                match service.reload(ReloadRequest { asked, insists }) {
                    Ok(()) => {
                        info!(service = service.config.name, force, "reload requested");
                        done("reloading")
                    }
                    Err(error) => conflict(&error),
                }
            }
        },
        Change::Rollback(name) => match service(name) {
            None => no_service(),
            Some(_) if is_draining => drains(),
            Some(service) => {
                let reason = "requested through the admin interface";
                match service.generations.go_back(reason) {
                    Ok(()) => done("rolled back"),
                    Err(error) => conflict(&error),
                }
            }
        },
        Change::Drain => {
            info!("drain requested");
            process.drain.notify_one();
            done("draining")
        }
    }
}

/// It is done, or will be: what comes of it can be looked at.
fn done(what: &str) -> Answer {
    #[derive(Serialize)]
    struct Done<'a> {
        done: &'a str,
    }
    json(StatusCode::ACCEPTED, &Done { done: what })
}

fn page() -> Answer {
    let Ok(nonce) = token::random::<16>() else {
        return refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the system provides no random numbers",
        );
    };
    let page = whole(
        StatusCode::OK,
        "text/html; charset=utf-8",
        PAGE.replace(NONCE, &nonce),
    );
    // What a peer calls itself is on the page: nothing of it could run, or be sent anywhere.
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    and(page, CONTENT_SECURITY_POLICY, &policy)
}

/// The status once a second, without end.
fn look(admin: &Arc<Admin>) -> Answer {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    events(stream::unfold(
        (Arc::clone(admin), looks),
        async |(admin, mut looks)| {
            looks.tick().await;
            let event = admin.watch.event(&admin.process).await;
            Some((event, (admin, looks)))
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_is_asked_for() {
        assert_eq!(Route::of("/"), Some(Route::Page));
        assert_eq!(Route::of("/connections"), Some(Route::Connections));
        assert_eq!(
            Route::of("/connections/17/close"),
            Some(Route::Change(Change::Close(17)))
        );
        assert_eq!(
            Route::of("/services/a%20b/reload"),
            Some(Route::Change(Change::Reload("a%20b")))
        );
        for path in [
            "",
            "//",
            "/x",
            "/connections/",
            "/connections/-1/close",
            "/connections/+2/close",
            "/connections/1/close/",
            "/services/a",
        ] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }

    #[test]
    fn only_a_reload_takes_a_parameter_and_only_force() {
        let reload = Change::Reload("a");
        for (query, force) in [
            (None, false),
            (Some(""), false),
            (Some("force"), true),
            (Some("force=1"), true),
            (Some("force=true"), true),
            (Some("force&force=1"), true),
        ] {
            assert_eq!(forced(&reload, query), Ok(force), "{query:?}");
        }
        for query in [
            "force=",
            "force=0",
            "force=false",
            "force=yes",
            "Force",
            "x",
            "force&x=1",
        ] {
            assert!(forced(&reload, Some(query)).is_err(), "{query}");
        }
        for change in [Change::Close(1), Change::Rollback("a"), Change::Drain] {
            assert_eq!(forced(&change, None), Ok(false));
            assert!(forced(&change, Some("force")).is_err());
        }
    }

    #[test]
    fn the_page_has_two_places_for_the_nonce() {
        assert_eq!(PAGE.matches(NONCE).count(), 2);
    }
}
