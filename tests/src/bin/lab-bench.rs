//! Measures the data path, failovers, and what streams notice of them: `cargo xtask bench`.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Parser};
use lb_tests::bench::{
    self, adoption,
    continuity::{self, Mode},
    failover::{Event, Options, Profile, System},
    flood, sync,
};

#[derive(Debug, Parser)]
enum Arguments {
    /// Nanoseconds a packet in the data path, and multiples of a program that only returns it
    Datapath {
        /// Print one object a line
        #[arg(long)]
        json: bool,
        /// Visit connections in no order, so that hardly a cache line is still there: the worst that traffic can be. Without it they
        /// come in the order in which they were made
        #[arg(long)]
        shuffled: bool,
    },
    /// Milliseconds until a VIP is served by another node, for xvip and for keepalived
    Failover(Failover),
    /// What long-lived streams notice of restarts, upgrades, reloads and failovers
    Continuity(Continuity),
    /// What it costs to take over a million connections from a daemon that was killed: time and memory
    Adoption {
        /// Print one object a line
        #[arg(long)]
        json: bool,
        /// Restarts
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// How far a peer is behind, and what both spend, while connections are made
    Sync {
        /// Print one object a line
        #[arg(long)]
        json: bool,
        /// New connections a second
        #[arg(long, default_value_t = 10_000)]
        rate: u32,
        /// For how long, in seconds
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// Connections that there is room for
        #[arg(long)]
        room: Option<u32>,
    },
    /// What a flood of SYNs costs those who work: connections that break, clients that get none
    Flood {
        /// Print one object a line
        #[arg(long)]
        json: bool,
        /// How many seconds it lasts, for each family
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
}

#[derive(Args, Debug)]
struct Continuity {
    /// Print one object a line
    #[arg(long)]
    json: bool,
    #[arg(long, default_value_t = 500)]
    streams: u32,
    /// Restarts; twice as many upgrades and reloads
    #[arg(long, default_value_t = 10)]
    restarts: usize,
    /// By kill and by link loss each, in each mode
    #[arg(long, default_value_t = 20)]
    failovers: usize,
    /// Failovers only in these [default: nat,dsr]
    #[arg(long, value_delimiter = ',')]
    modes: Vec<Mode>,
}

#[derive(Args, Debug)]
struct Failover {
    /// Print one object a line
    #[arg(long)]
    json: bool,
    /// Runs of each event for each system and profile
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Only these [default: power-off,orderly-stop,kill,heal,garp-lost,service-death,stall; there is
    /// `busy`, too]
    #[arg(long, value_delimiter = ',')]
    events: Vec<Event>,
    /// Only these [default: keepalived,xvip]
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Only these [default: default,fast]
    #[arg(long, value_delimiter = ',')]
    profiles: Vec<Profile>,
    /// Seconds until a partition heals
    #[arg(long, default_value_t = 8.0)]
    partition: f64,
    /// Seconds that the event `busy` lasts
    #[arg(long, default_value_t = 600.0)]
    busy: f64,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse() {
        Arguments::Datapath { json, shuffled } => {
            let report = bench::datapath(shuffled)?;
            print(json, &report, report.json()?);
            Ok(ExitCode::SUCCESS)
        }
        Arguments::Failover(arguments) => failover(arguments),
        Arguments::Continuity(Continuity { json, streams, restarts, failovers, modes }) => {
            let (pace, modes) = (Duration::from_millis(100), or_all(modes, &Mode::ALL));
            let options = continuity::Options { streams, pace, restarts, failovers, modes };
            let report = continuity::continuity(&options)?;
            print(json, &report, report.json()?);
            Ok(if report.is_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Arguments::Adoption { json, runs } => {
            let report = adoption::adoption(runs)?;
            print(json, &report, report.json()?);
            Ok(ExitCode::SUCCESS)
        }
        Arguments::Sync { json, rate, seconds, room } => {
            let report = sync::sync(&sync::Options { rate, seconds, room })?;
            print(json, &report, report.json()?);
            Ok(ExitCode::SUCCESS)
        }
        Arguments::Flood { json, seconds } => {
            let report = flood::flood(&flood::Options { duration: Duration::try_from_secs_f64(seconds)? })?;
            print(json, &report, report.json()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn failover(arguments: Failover) -> Result<ExitCode> {
    let Failover { json, runs, events, systems, profiles, partition, busy } = arguments;
    let report = bench::failover::failover(&Options {
        runs,
        events: or_all(events, &Event::USUAL),
        systems: or_all(systems, &System::ALL),
        profiles: or_all(profiles, &Profile::ALL),
        partition: Duration::try_from_secs_f64(partition)?,
        busy: Duration::try_from_secs_f64(busy)?,
    })?;
    print(json, &report, report.json()?);
    // What could not be measured is in the report; programs learn it from the status too.
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(json: bool, table: &impl std::fmt::Display, lines: String) {
    if json {
        println!("{lines}");
    } else {
        print!("{table}");
    }
}

fn or_all<T: Copy>(chosen: Vec<T>, all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all.to_vec() } else { chosen }
}
