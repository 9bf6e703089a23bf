//! The clsact qdisc, on which classifiers hang where the kernel has no links for them (before Linux 6.6).

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_route::tc::{TcHandle, TcMessage},
};

use super::NetlinkError;

/// Removes an interface's clsact qdisc unless there is a filter on it; true if it did. One that is gone already is no error.
pub async fn remove_unused(handle: &Handle, index: u32) -> Result<bool, NetlinkError> {
    let failed = |source| NetlinkError::new(format!("removing the clsact qdisc of interface {index}"), source);
    let number = index.cast_signed();
    let filters = |on: &str| {
        let asked = handle.traffic_filter(number).get();
        if on == "ingress" { asked.ingress() } else { asked.egress() }.execute()
    };
    for on in ["ingress", "egress"] {
        let found: Vec<TcMessage> = filters(on).try_collect().await.map_err(failed)?;
        if !found.is_empty() {
            log::info!("the clsact qdisc of interface {index} stays: it has a filter on {on}");
            return Ok(false);
        }
    }
    let mut request = handle.qdisc().del(number);
    let header = &mut request.message_mut().header;
    // TC_H_CLSACT of the kernel's pkt_sched.h, which is TC_H_INGRESS, and the handle that such a qdisc has always.
    header.parent = TcHandle::INGRESS;
    header.handle = TcHandle { major: 0xffff, minor: 0 };
    match request.execute().await.map_err(failed) {
        Err(error) if !matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Err(error),
        outcome => Ok(outcome.is_ok()),
    }
}
