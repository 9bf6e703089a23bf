//! Long-lived connections: numbered lines sent through `/echo` and expected back in order.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use tokio::{sync::watch, time::timeout};

use super::{Client, Failure, Stage, backend};

/// One stream of numbered lines.
#[derive(Clone, Debug)]
pub struct EchoPlan {
    pub lines: u64,
    /// Between an answer and the next line.
    pub pause: Duration,
    /// From one line to its answer.
    pub patience: Duration,
    pub source: Option<SocketAddr>,
    /// Ends the stream early when it becomes true.
    pub stop: Option<watch::Receiver<bool>>,
}

/// How a stream went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoReport {
    pub backend: String,
    /// Lines that came back, each in its turn.
    pub echoed: u64,
    /// The longest wait for one of them.
    pub longest: Duration,
    /// What ended the stream before its plan.
    pub failure: Option<Failure>,
}

/// Runs one stream to its end. An error means that it never began; what breaks it later is in the report.
pub async fn echo(client: &Client, plan: EchoPlan) -> Result<EchoReport, Failure> {
    let client = client.at("/echo");
    let (lines, mut queue) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = futures_util::stream::poll_fn(move |context| {
        (queue.poll_recv(context)).map(|line| Some(Ok::<_, hyper::Error>(Frame::data(line?))))
    });
    let begin = async {
        let stream = client.connect(plan.source).await?;
        let stream = client.handshake(stream, client.tls(&["http/1.1"])).await?;
        client.send(stream, "POST", StreamBody::new(frames)).await
    };
    let response = timeout(client.timeout, begin).await.unwrap_or(Err(Failure::Timeout(Stage::Connect)))?;

    let mut report =
        EchoReport { backend: backend(response.headers()), echoed: 0, longest: Duration::ZERO, failure: None };
    let mut body = response.into_body();
    let stopped = || plan.stop.as_ref().is_some_and(|stop| *stop.borrow());
    while report.echoed < plan.lines && !stopped() {
        let start = Instant::now();
        let line = Bytes::from(format!("{}\n", report.echoed));
        // A stream whose connection is gone drops the queue; the body then says why.
        let _ = lines.send(line.clone()).await;
        match timeout(plan.patience, come_back(&mut body, &line)).await {
            Ok(Ok(())) => report.echoed += 1,
            Ok(Err(failure)) => report.failure = Some(failure),
            Err(_) => report.failure = Some(Failure::Timeout(Stage::Answer)),
        }
        if report.failure.is_some() {
            break;
        }
        report.longest = report.longest.max(start.elapsed());
        tokio::time::sleep(plan.pause).await;
    }
    Ok(report)
}

/// Reads exactly `line`, in however many pieces.
pub(super) async fn come_back(body: &mut Incoming, line: &[u8]) -> Result<(), Failure> {
    let mut read = Vec::with_capacity(line.len());
    while read.len() < line.len() {
        let frame = body.frame().await.ok_or(Failure::Closed(Stage::Answer))?.map_err(Failure::answer)?;
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
    }
    if read == line {
        return Ok(());
    }
    let (sent, read) = (String::from_utf8_lossy(line), String::from_utf8_lossy(&read));
    Err(Failure::Foreign(format!("sent {sent:?}, {read:?} came back")))
}
