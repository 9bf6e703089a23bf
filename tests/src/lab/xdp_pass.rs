//! The smallest XDP program, `return XDP_PASS`, for the switch's side of a port; and how somebody else's is taken off.
//!
//! A veth drops the frames that XDP_TX sends into it unless its own receive path runs under NAPI, which an XDP program
//! there turns on (drivers/net/veth.c, veth_xdp_xmit and veth_napi_enable). Two instructions need no object file.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = 2 /* XDP_PASS */; exit`, as `struct bpf_insn`s in memory.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads here; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    /// log_level, log_size, log_buf, kern_version and prog_flags.
    unused: [u32; 6],
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads here.
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program natively to an interface of the calling thread's namespace, for as long as the link is held.
pub(super) fn attach(ifindex: u32) -> io::Result<OwnedFd> {
    let license = c"MIT";
    let program = bpf(
        BPF_PROG_LOAD,
        &LoadAttr {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: PASS.len() as u32,
            insns: PASS.as_ptr() as u64,
            license: license.as_ptr() as u64,
            unused: [0; 6],
            prog_name: *b"lab_pass\0\0\0\0\0\0\0\0",
        },
    )?;
    bpf(
        BPF_LINK_CREATE,
        &LinkAttr {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            target_ifindex: ifindex,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        },
    )
}

/// Takes a program off its interface by the pin of its link, as `bpftool link detach pinned` does: the pin stays.
pub(super) fn cut(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf(BPF_OBJ_GET, &[path.as_ptr() as u64, 0])?;
    call(BPF_LINK_DETACH, &link.as_raw_fd()).map(drop)
}

/// bpf(2) for commands that return a new descriptor.
fn bpf<A>(command: libc::c_int, attr: &A) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the call succeeded, so `fd` is a fresh descriptor that nobody else owns; it fits, as all descriptors do.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn call<A>(command: libc::c_int, attr: &A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` without padding, alive and of the size given during the call, as is what the
    // addresses inside it point to. The kernel only reads them.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
