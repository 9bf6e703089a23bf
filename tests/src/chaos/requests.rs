//! New requests all the time, each over a connection of its own, in both families.

use std::{
    net::IpAddr,
    thread::{self, JoinHandle},
};

use anyhow::Result;
use tokio::sync::watch;

use crate::{
    client::{self, Load, Outcome, Report},
    topology::Deployment,
};

/// A second, in each family.
const RATE: f64 = 10.0;
/// Unlike those of the streams, which come first.
const SOURCES: u32 = 40;

#[derive(Debug)]
pub(super) struct Requests {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<Report>>>,
}

impl Requests {
    /// Makes requests until it is finished or dropped. The first `taken` addresses of the client are others'.
    pub(super) fn start(deployment: &Deployment, taken: u32) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::new();
        for v6 in [false, true] {
            let (client, host) = (deployment.client_of(v6)?, deployment.client_host().clone());
            let sources: Vec<IpAddr> = deployment.sources(v6, taken + SOURCES)?.split_off(taken as usize);
            let stop = Some(stopped.clone());
            let load =
                Load { requests: usize::MAX, concurrency: 100, rate: Some(RATE), sources, stop, ..Load::default() };
            threads.push(thread::spawn(move || Ok(host.run(|| client::run(&client, load))?)));
        }
        Ok(Self { stop, threads })
    }

    /// Ends them. All that were made.
    pub(super) fn finish(mut self) -> Result<Vec<Outcome>> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            all.extend(thread.join().expect("requests do not panic")?.outcomes);
        }
        Ok(all)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A panic has been printed by its thread.
            let _ = thread.join();
        }
    }
}
