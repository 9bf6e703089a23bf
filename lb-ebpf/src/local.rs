//! The hooks at sockets of this host: each fetches what the call is about, asks `lb-common` and carries out the choice.

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use lb_common::{
    address::{Address, V4, V6},
    datapath::local::{self, Choice, Socket},
};

use crate::tables::Maps;

/// Number of the network namespace that the daemon is in.
#[unsafe(no_mangle)]
static HOME: Global<u64> = Global::new(0);

/// Whether the kernel has `bpf_set_retval` for these hooks (6.1). The verifier does not look at what a constant leaves out.
#[unsafe(no_mangle)]
static CHOOSES_ERRORS: Global<u32> = Global::new(0);

/// What a hook returns.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::<V6>(&ctx)
}

/// Runs when the last descriptor of a socket is closed.
#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let tcp = unsafe { (&raw const (*ctx.sock).protocol).read_volatile() } == IPPROTO_TCP;
    if tcp {
        // SAFETY: a plain helper call.
        local::closed(&Maps::new(ctx.as_ptr()), unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    }
    ALLOW
}

#[inline(always)]
fn connect<A: Kind>(ctx: &SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    // SAFETY: the context is valid while the program runs, fields of it are read and written word by word as the verifier wants,
    // and the helpers are plain calls.
    unsafe {
        if (&raw const (*address).type_).read_volatile() != SOCK_STREAM
            || (&raw const (*address).protocol).read_volatile() != IPPROTO_TCP
        {
            return ALLOW;
        }
        let socket = Socket {
            cookie: bpf_get_socket_cookie(ctx.as_ptr()),
            netns: bpf_get_netns_cookie(ctx.as_ptr()),
            source: A::bound((&raw const (*address).__bindgen_anon_1.sk).read_volatile()),
            destination: A::address(address),
            port: port(address),
        };
        match local::connect(&Maps::new(ctx.as_ptr()), &socket, HOME.load()) {
            Choice::Leave => ALLOW,
            Choice::To { address: chosen, port } => {
                A::set_address(address, &chosen);
                set_port(address, port);
                ALLOW
            }
            Choice::Refuse => {
                // Otherwise the caller gets EPERM.
                if CHOOSES_ERRORS.load() != 0 {
                    bpf_set_retval(-ECONNREFUSED);
                }
                DENY
            }
        }
    }
}

#[inline(always)]
fn getpeername<A: Kind>(ctx: &SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    // SAFETY: as in `connect`.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        let shown = local::peer(&Maps::new(ctx.as_ptr()), cookie, A::address(address), port(address));
        if let Some((asked, asked_port)) = shown {
            A::set_address(address, &asked);
            set_port(address, asked_port);
        }
    }
    ALLOW
}

/// # Safety
/// `context` must be the program's own.
#[inline(always)]
unsafe fn port(context: *mut bpf_sock_addr) -> [u8; 2] {
    // SAFETY: by the caller. The port is in network order in the first bytes of the word.
    let [first, second, ..] = unsafe { (&raw const (*context).user_port).read_volatile() }.to_ne_bytes();
    [first, second]
}

/// # Safety
/// `context` must be the program's own.
#[inline(always)]
unsafe fn set_port(context: *mut bpf_sock_addr, [first, second]: [u8; 2]) {
    // SAFETY: by the caller.
    unsafe { (&raw mut (*context).user_port).write_volatile(u32::from_ne_bytes([first, second, 0, 0])) }
}

/// The two kinds of sockets. Addresses are mapped: an IPv6 socket may connect to either family.
///
/// # Safety
/// Pointers given to these functions must be the program's own context and what it leads to.
trait Kind {
    unsafe fn address(context: *mut bpf_sock_addr) -> [u8; 16];
    unsafe fn set_address(context: *mut bpf_sock_addr, address: &[u8; 16]);
    unsafe fn bound(socket: *mut bpf_sock) -> [u8; 16];
}

impl Kind for V4 {
    #[inline(always)]
    unsafe fn address(context: *mut bpf_sock_addr) -> [u8; 16] {
        // SAFETY: by the caller.
        V4(unsafe { (&raw const (*context).user_ip4).read_volatile() }.to_ne_bytes()).mapped()
    }

    #[inline(always)]
    unsafe fn set_address(context: *mut bpf_sock_addr, address: &[u8; 16]) {
        let V4(bytes) = V4::from_mapped(address);
        // SAFETY: by the caller.
        unsafe { (&raw mut (*context).user_ip4).write_volatile(u32::from_ne_bytes(bytes)) }
    }

    #[inline(always)]
    unsafe fn bound(socket: *mut bpf_sock) -> [u8; 16] {
        // SAFETY: by the caller.
        V4(unsafe { (&raw const (*socket).src_ip4).read_volatile() }.to_ne_bytes()).mapped()
    }
}

impl Kind for V6 {
    #[inline(always)]
    unsafe fn address(context: *mut bpf_sock_addr) -> [u8; 16] {
        // SAFETY: by the caller.
        unsafe { words((&raw const (*context).user_ip6).cast()) }
    }

    #[inline(always)]
    unsafe fn set_address(context: *mut bpf_sock_addr, address: &[u8; 16]) {
        let [first, second, third, fourth] = V6(*address).words();
        // SAFETY: by the caller; four words.
        unsafe {
            let to = (&raw mut (*context).user_ip6).cast::<u32>();
            to.write_volatile(first);
            to.add(1).write_volatile(second);
            to.add(2).write_volatile(third);
            to.add(3).write_volatile(fourth);
        }
    }

    #[inline(always)]
    unsafe fn bound(socket: *mut bpf_sock) -> [u8; 16] {
        // SAFETY: by the caller.
        unsafe { words((&raw const (*socket).src_ip6).cast()) }
    }
}

/// # Safety
/// `from` must point to four readable words.
#[inline(always)]
unsafe fn words(from: *const u32) -> [u8; 16] {
    // SAFETY: by the caller.
    let word = |index| unsafe { from.add(index).read_volatile() }.to_ne_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (word(0), word(1));
    let ([i, j, k, l], [m, n, o, p]) = (word(2), word(3));
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
