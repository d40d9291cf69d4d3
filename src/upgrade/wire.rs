//! What the two processes say to each other: JSON behind its length, and descriptors as `SCM_RIGHTS` (unix(7)).
//!
//! The old process speaks first: a [`Manifest`], then one descriptor for each of its sockets. The new one replies `Ready` or
//! `Failed`; the old one orders it to `Accept`, hears `Accepting` and, when the service manager knows, orders it to `Lead`.
//! Two versions of the program meet here: fields are only ever added, and unknown ones are ignored.

use crate::listener::Passed;
use crate::value::Address;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Diagnostics of a large configuration are the longest that is ever said.
const MESSAGE_MAX: u32 = 16 << 20;

/// The sockets that follow, in their order; the admin socket is the last.
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    pub version: String,
    pub sockets: Vec<Entry>,
    pub admin: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Entry {
    pub listener: Option<String>,
    pub requested: String,
    pub local: String,
    pub owned: bool,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Ready,
    Failed(String),
    Accepting,
}

/// What the old process says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Accept,
    /// The probation is over: the service manager knows the new process as the main one and listens to it.
    Lead,
}

impl Manifest {
    pub fn new(sockets: &[Passed], admin: Option<&Address>) -> Self {
        let entry = |passed: &Passed| Entry {
            listener: passed.listener.as_deref().map(ToOwned::to_owned),
            requested: passed.requested.to_string(),
            local: passed.local.to_string(),
            owned: passed.owned,
        };
        Manifest {
            version: crate::VERSION.to_owned(),
            sockets: sockets.iter().map(entry).collect(),
            admin: admin.map(ToString::to_string),
        }
    }
}

pub fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= MESSAGE_MAX);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&text)
}

pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    Read::by_ref(stream).take(u64::from(length)).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|e| if e.is_eof() { io::ErrorKind::UnexpectedEof.into() } else { io::Error::other(e) })
}

/// One descriptor, with the one byte that it needs to travel.
pub fn send_socket(stream: &UnixStream, socket: BorrowedFd<'_>) -> io::Result<()> {
    let sockets = [socket];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub fn receive_socket(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    sockets.next().ok_or_else(|| io::Error::other("a descriptor is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let sockets: Vec<TcpListener> = (0..40).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        send(&mut here, &Order::Accept).unwrap();
        for socket in &sockets {
            send_socket(&here, socket.as_fd()).unwrap();
        }
        send(&mut here, &Reply::Failed("why".repeat(1000))).unwrap();
        assert_eq!(receive::<Order>(&mut there).unwrap(), Order::Accept);
        for socket in &sockets {
            let same = TcpListener::from(receive_socket(&there).unwrap());
            assert_eq!(same.local_addr().unwrap(), socket.local_addr().unwrap());
            assert!(TcpStream::connect(same.local_addr().unwrap()).is_ok());
        }
        assert!(matches!(receive::<Reply>(&mut there), Ok(Reply::Failed(why)) if why.len() == 3000));
        drop(here);
        assert_eq!(receive::<Reply>(&mut there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(receive_socket(&there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
