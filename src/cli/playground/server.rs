//! The server: the page's files, and a small JSON interface behind it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /`, `/page.css`, `/page.js`, `/sections.js` | the page |
//! | `GET /api/state` | the programs with their runs |
//! | `GET /api/training` | the progress of the last training run |
//! | `GET /api/digit/N` | a drawn digit |
//! | `POST /api/ask/PROGRAM/RUN` | the model's answer to the body; `RUN` is the `id` of a run |
//! | `GET /answer/N` | the page in an answer, which brings its own script |
//! | `POST /api/train/PROGRAM` | starts a training run |
//! | `POST /api/stop` | stops it |
//!
//! An error is an object with the line `error`.

use super::super::record::Record;
use super::program::{Job, Program};
use super::training::{Trainings, summary};
use crate::data::digits;
use crate::train::Run;
use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{self, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// The largest body of a request.
const MAX_BODY: usize = 1 << 20;

/// Number of the last pages in answers to keep.
const PAGES: usize = 8;

/// The permissions of the page and its parts.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// The same for a page in an answer: its own script, and nothing else.
const ANSWER_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'self'";

/// The state of the server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) programs: Vec<Program>,
    /// The runs outside of `runs/` that the page offers, each with the name of its program.
    pub(super) given: Vec<(&'static str, PathBuf)>,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) training: Arc<Trainings>,
    pub(super) pages: Pages,
}

/// The last pages in answers, each with its number.
#[derive(Default)]
pub(super) struct Pages(Mutex<VecDeque<(u64, String)>>);

impl Pages {
    /// Replaces the page in an answer, if there is one, by its address.
    fn take(&self, answer: &mut Value) {
        let Some(Value::String(page)) = answer.get_mut("page").map(Value::take) else { return };
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = pages.back().map_or(1, |(number, _)| number + 1);
        if pages.len() == PAGES {
            pages.pop_front();
        }
        pages.push_back((number, page));
        answer["page"] = json!(format!("/answer/{number}"));
    }

    fn get(&self, number: u64) -> Option<String> {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.iter().find(|(known, _)| *known == number).map(|(_, page)| page.clone())
    }
}

/// An answer to a request that can't be met.
struct Refusal(StatusCode, anyhow::Error);

/// A mistake in a request.
fn bad(error: anyhow::Error) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, error) = self;
        // Keep only the first line: candle appends a backtrace.
        let line = format!("{error:#}").lines().next().unwrap_or_default().to_string();
        (status, [(CONTENT_TYPE, "application/json")], json!({ "error": line }).to_string()).into_response()
    }
}

type Answer = Result<Response, Refusal>;

/// The parameters in the address of a request.
struct Parameters<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(parameters) =
            Path::from_request_parts(parts, state).await.map_err(|error| bad(error.into()))?;
        Ok(Self(parameters))
    }
}

fn answer(value: &Value) -> Answer {
    Ok(([(CONTENT_TYPE, "application/json")], value.to_string()).into_response())
}

impl Server {
    /// Serves until the process ends.
    pub(super) fn run(self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, router(self)).await
            })
        });
        if let Err(error) = served {
            super::super::complain(&format!("error: the server has stopped: {error}"));
        }
    }

    fn program(&self, name: &str) -> Result<&Program, Refusal> {
        let found = self.programs.iter().find(|program| program.name == name);
        found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, anyhow!("{name}: there is no such program")))
    }

    /// The folder of the run with this `id`: its number, or one of the given runs.
    fn run_folder(&self, program: &str, id: &str) -> Result<PathBuf, Refusal> {
        if let Ok(number) = id.parse::<u64>() {
            return Ok(path::Path::new("runs").join(program).join(number.to_string()));
        }
        let mut given = self.given_to(program).filter(|(known, _)| known == id);
        let missing = || Refusal(StatusCode::NOT_FOUND, anyhow!("{id}: there is no such run of {program}"));
        given.next().map(|(_, dir)| dir.clone()).ok_or_else(missing)
    }

    /// The given runs of a program, each with its `id`.
    fn given_to(&self, program: &str) -> impl Iterator<Item = (String, &PathBuf)> {
        let given = self.given.iter().enumerate().filter(move |(_, (of, _))| *of == program);
        given.map(|(index, (_, dir))| (format!("given-{index}"), dir))
    }

    /// Checks that a request comes from the page, or from no page at all.
    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |what: &str| {
            let address = self.address;
            Refusal(StatusCode::FORBIDDEN, anyhow!("{what}: open the page as http://{address}/"))
        };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.filter(|host| is_own(host, self.address));
        let host = host.ok_or_else(|| forbidden("the request is for another host"))?;
        match headers.get(ORIGIN) {
            Some(origin) if origin.as_bytes() != format!("http://{host}").as_bytes() => {
                Err(forbidden("the request comes from another page"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether `host` is a name and port of the server at `bound`.
///
/// Another name may be an attacker's that resolves to this machine.
fn is_own(host: &str, bound: SocketAddr) -> bool {
    // Browsers leave out the port 80.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, "80"),
    };
    // A numeric address never goes through a name server.
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_known = match address {
        Ok(address) => address.is_loopback() || address == bound.ip() || bound.ip().is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    is_known && port.parse() == Ok(bound.port())
}

fn router(server: Server) -> Router {
    let server = Arc::new(server);
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page.html")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page.css")))
        .route("/sections.js", file("text/javascript; charset=utf-8", include_str!("sections.js")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/api/state", get(state))
        .route("/api/training", get(training))
        .route("/api/digit/{number}", get(digit))
        .route("/api/ask/{program}/{run}", post(ask))
        .route("/answer/{number}", get(page))
        .route("/api/train/{program}", post(train))
        .route("/api/stop", post(stop))
        .fallback(async || Refusal(StatusCode::NOT_FOUND, anyhow!("there is nothing at this address")))
        .method_not_allowed_fallback(async || {
            Refusal(StatusCode::METHOD_NOT_ALLOWED, anyhow!("this address does not take such a request"))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

/// Refuses requests of other pages, and keeps the page from loading anything else.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let mut response = match server.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Calls `work`, which reads files or starts processes, on a thread where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await.map_err(anyhow::Error::from).flatten();
    done.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error))
}

async fn state(State(server): State<Arc<Server>>) -> Answer {
    let runs = move || {
        let programs = server.programs.iter().map(|program| {
            let dirs = Run::with_model(program.name)?.into_iter().rev();
            // A damaged run is skipped; the command line reports why.
            let shown = |dir: &path::Path| Some(summary(dir, Some(&Record::read(program.name, dir).ok()?)));
            let given = server.given_to(program.name).filter_map(|(id, dir)| {
                let mut run = shown(dir)?;
                (run["id"], run["name"]) = (json!(id), json!(dir.display().to_string()));
                Some(run)
            });
            let runs: Vec<Value> = dirs.filter_map(|dir| shown(&dir)).chain(given).collect();
            let &Program { name, about, section, .. } = program;
            Ok(json!({ "name": name, "about": about, "section": section, "runs": runs }))
        });
        Ok(Value::Array(programs.collect::<Result<_>>()?))
    };
    answer(&blocking(runs).await?)
}

async fn training(State(server): State<Arc<Server>>) -> Answer {
    answer(&blocking(move || Ok(server.training.progress())).await?)
}

async fn digit(Parameters(number): Parameters<u64>) -> Answer {
    let draw = move || {
        let (_, digits) = digits(0, 1 + number as usize % 10, number)?;
        let last = digits.len() - 1;
        Ok(json!({ "pixels": &*digits.image(last)?, "label": digits.labels()[last] }))
    };
    answer(&blocking(draw).await?)
}

async fn ask(
    State(server): State<Arc<Server>>,
    Parameters((program, run)): Parameters<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let program = server.program(&program)?.clone();
    let body = body.map_err(|error| {
        let size = anyhow!("the request is larger than {} KiB", MAX_BODY >> 10);
        Refusal(
            error.status(),
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE { size } else { error.into() },
        )
    })?;
    let (reply, answered) = tokio::sync::oneshot::channel();
    let dir = server.run_folder(program.name, &run)?;
    let job = Job { program, dir, question: body.to_vec(), reply };
    let ending = || Refusal(StatusCode::SERVICE_UNAVAILABLE, anyhow!("the playground is ending"));
    server.jobs.send(job).map_err(|_| ending())?;
    let mut answered = answered.await.map_err(|_| ending())?.map_err(bad)?;
    server.pages.take(&mut answered);
    answer(&answered)
}

async fn page(State(server): State<Arc<Server>>, Parameters(number): Parameters<u64>) -> Answer {
    let missing = || Refusal(StatusCode::NOT_FOUND, anyhow!("this page is gone: ask again"));
    let page = server.pages.get(number).ok_or_else(missing)?;
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, ANSWER_POLICY)];
    Ok((headers, page).into_response())
}

async fn train(State(server): State<Arc<Server>>, Parameters(program): Parameters<String>) -> Answer {
    let program = server.program(&program)?.name;
    let start = move || {
        let started = server.training.start(program);
        Ok(started.map(|()| server.training.progress()))
    };
    answer(&blocking(start).await?.map_err(|error| Refusal(StatusCode::CONFLICT, error))?)
}

async fn stop(State(server): State<Arc<Server>>) -> Answer {
    let stop = move || {
        let stopped = server.training.stop().context("cannot stop");
        Ok(stopped.map(|()| server.training.progress()))
    };
    answer(&blocking(stop).await?.map_err(|error| Refusal(StatusCode::CONFLICT, error))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_name_and_port_and_without_a_port_by_80() {
        let is_own = |host: &str, bound: &str| is_own(host, bound.parse().unwrap());
        for host in ["127.0.0.1", "127.0.0.1:80", "localhost", "[::1]", "[::1]:80"] {
            assert!(is_own(host, "127.0.0.1:80") && !is_own(host, "127.0.0.1:1998"), "{host}");
        }
        for host in ["127.0.0.1:1998", "example.com", "example.com:80", "10.0.0.1", "", ":", "::1"] {
            assert!(!is_own(host, "127.0.0.1:80"), "{host}");
        }
        assert!(is_own("10.0.0.1", "10.0.0.1:80") && is_own("10.0.0.2:81", "0.0.0.0:81"));
    }
}
