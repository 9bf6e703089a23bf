//! What the programs do with the tables of connections, and how they choose a backend, as global functions: the verifier checks each once, by the types of its arguments,
//! and not again for each call and for each way that led there (`btf_prepare_func_args` in the kernel's source, since Linux 5.13).
//! They return numbers only.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use lb_common::{
    abi::{BackendId, SUSPICION_REST, ServiceId},
    address::{V4, V6},
    datapath::{
        self,
        selection::{self, Asker, Kind},
    },
    flow::{Flow, Key, News},
    table::{self, Existing, Inserted, NOWHERE},
};

use crate::{
    maps::{NEWS, SUSPECTED, SUSPICIONS},
    tables::Maps,
};

/// A table without a packet: route lookups are not for these functions.
const MAPS: Maps = Maps::new(core::ptr::null_mut());

macro_rules! functions {
    ($address:ty, $overdue:ident, $turned:ident, $locate:ident, $insert:ident, $remove:ident, $advance:ident, $tell:ident) => {
        /// See [`datapath::overdue`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $overdue(key: *const Key<$address>) -> u64 {
            // SAFETY: as below.
            unsafe { key.as_ref() }.is_some_and(|key| datapath::overdue(&MAPS, key)).into()
        }

        /// See [`datapath::turned`]; the MAC address in the lower six bytes.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $turned(key: *const Key<$address>, sender: u64) -> u64 {
            let [a, b, c, d, e, f, ..] = sender.to_ne_bytes();
            // SAFETY: as below.
            let found =
                unsafe { key.as_ref() }.map_or(BackendId::NONE, |key| datapath::turned(&MAPS, key, [a, b, c, d, e, f]));
            found.0.into()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $locate(key: *const Key<$address>) -> u64 {
            // SAFETY: the verifier has seen to it that a pointer that is not null leads to a key.
            unsafe { key.as_ref() }.map_or(NOWHERE, |key| table::locate(&MAPS, key))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $insert(key: *const Key<$address>, flow: *const Flow<$address>, existing: u32) -> u64 {
            // SAFETY: as above.
            match unsafe { (key.as_ref(), flow.as_ref()) } {
                (Some(key), Some(flow)) => table::insert(&MAPS, key, flow, Existing::from_raw(existing)),
                _ => Inserted::Full as u64,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $remove(key: *const Key<$address>, now: u32) -> u64 {
            // SAFETY: as above.
            if let Some(key) = unsafe { key.as_ref() } {
                table::remove(&MAPS, key, now);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $advance(
            key: *const Key<$address>,
            other: *const Key<$address>,
            leader: *const Flow<$address>,
        ) -> u64 {
            // SAFETY: as above.
            if let (Some(key), Some(other), Some(leader)) = unsafe { (key.as_ref(), other.as_ref(), leader.as_ref()) } {
                table::advance(&MAPS, key, other, leader);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $tell(key: *const Key<$address>, flow: *const Flow<$address>) -> u64 {
            // SAFETY: as above.
            if let (Some(key), Some(flow)) = unsafe { (key.as_ref(), flow.as_ref()) }
                && let Some(mut news) = NEWS.reserve_untyped::<News<$address>>(0)
            {
                // SAFETY: the kernel's memory is as large; all of it is written, and every bit pattern is valid before.
                unsafe { news.assume_init_mut() }.tell(key, flow);
                news.submit(BPF_RB_NO_WAKEUP.into());
            }
            0
        }
    };
}

functions!(V4, overdue4, turned4, locate4, insert4, remove4, advance4, tell4);
functions!(V6, overdue6, turned6, locate6, insert6, remove6, advance6, tell6);

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn select(service: u32, source: u32, port: u32, kind: u32, former: u32) -> u64 {
    let asker = Asker { source, port, kind: Kind::from_raw(kind), former: BackendId(former) };
    selection::select(&MAPS, ServiceId(service), &asker)
}

/// [`datapath::another`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn another(service: u32, than: u32, seed: u32, shunned: u32) -> u64 {
    datapath::another(&MAPS, ServiceId(service), BackendId(than), seed, shunned as u8).0.into()
}

/// Tells the daemon of a backend, and wakes it, if that was not done a moment ago.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn suspect(backend: u32, now: u32) -> u64 {
    if let Some(last) = SUSPECTED.get(backend)
        && now.wrapping_sub(last.load()) >= SUSPICION_REST
    {
        last.store(now);
        // A full ring has woken the daemon already.
        let _ = SUSPICIONS.output_untyped::<u32>(backend, 0);
    }
    0
}
