//! The kube-apiserver's stand-in as a program of its own, so that it can be killed, stopped and started like one.

use anyhow::Result;
use clap::Parser;
use lb_tests::apiserver::{Arguments, serve};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // One descriptor a connection; the usual soft limit of 1024 is no load.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    serve(Arguments::parse()).await
}
