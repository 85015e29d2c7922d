//! The playground: one page in the browser, on which people use and train the models.
//!
//! [`main`] serves the page. Models answer on one thread (`models`), which keeps the last ones loaded; the server
//! (`server`) sends it the questions. A training run (`training`) is this executable again, as a separate process.

mod answers;
mod models;
mod program;
mod server;
mod training;

pub use answers::Playable;
pub use program::{Program, program};

use super::process::{STOP, catch_interrupts, on_threads};
use super::{Outcome, finish, in_range, with_negative_numbers};
use crate::train::{Run, say};
use anyhow::{Context, Result, anyhow};
use clap::{ArgMatches, Args, FromArgMatches};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

/// Use and train the models on a page in the browser
#[derive(Args)]
struct Options {
    /// Runs to offer besides those under runs/, such as runs made with --out
    #[arg(value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Port to serve the page on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 1998, value_parser = |text: &str| in_range(text, 0..=65535_u16, "a whole number, 0 to 65535"))]
    port: u16,
    /// Address to serve the page on: 0.0.0.0 lets everyone on the network use and train models on this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Number of CPU threads of the models [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = |text: &str| in_range(text, 1..=1024_usize, "a whole number, 1 to 1024"))]
    threads: Option<usize>,
}

/// Runs the playground with the models of `programs`.
///
/// If the first argument of the process is the name of a program, it runs as this program. The page trains models this
/// way.
pub fn main(programs: Vec<Program>) -> ExitCode {
    let first = std::env::args_os().nth(1);
    if let Some(program) = programs.iter().find(|program| first.as_deref() == Some(program.name.as_ref())) {
        return (program.main)();
    }
    let command = clap::Command::new("playground").version(env!("CARGO_PKG_VERSION"));
    let matches = Options::augment_args(command).mut_args(with_negative_numbers).try_get_matches();
    finish(matches, &|matches| serve(matches, programs.clone()))
}

fn serve(matches: &ArgMatches, programs: Vec<Program>) -> Result<Outcome> {
    let Options { runs, port, bind, threads } = Options::from_arg_matches(matches)?;
    let owned = |dir: PathBuf| Ok((owner(&programs, &dir)?, dir));
    let given = runs.into_iter().map(owned).collect::<Result<Vec<_>>>()?;
    on_threads(threads, || {
        let listener = listen(SocketAddr::new(bind, port))?;
        catch_interrupts()?;
        let address = listener.local_addr()?;
        let (jobs, questions) = mpsc::channel();
        let training = Arc::new(training::Trainings::default());
        let pages = Default::default();
        let server = server::Server { address, programs, given, jobs, training: training.clone(), pages };
        std::thread::Builder::new().name("server".into()).spawn(move || server.run(listener))?;
        say(&format!("the playground is at http://{address}/ (Ctrl-C ends it)"));
        let answered = models::answer(&questions, || STOP.is_requested());
        // Also ends a training run if the server has stopped by itself.
        STOP.request();
        training.end();
        answered?;
        Ok(Outcome::Interrupted)
    })
}

/// The name of the program whose run is in `dir`.
fn owner(programs: &[Program], dir: &Path) -> Result<&'static str> {
    let found = programs.iter().find(|program| Run::open(program.name, Some(dir)).is_ok());
    let names = || programs.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
    let found =
        found.with_context(|| format!("{}: expected the folder of a run of {}", dir.display(), names()))?;
    Ok(found.name)
}

/// Claims the address.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!("{address}: another program uses this port: choose one with --port"),
        ErrorKind::AddrNotAvailable => anyhow!("{address}: this machine has no such address: see --bind"),
        _ => anyhow!("{address}: cannot serve there: {error}"),
    })?;
    listener.set_nonblocking(true).context("the server's socket")?;
    Ok(listener)
}
