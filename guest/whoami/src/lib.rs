//! Tells its peer what it knows of it, by the sessions contract: a line for each word of `peer`, and the end.

use inet_guest::sessions::{Answer, Peer, Session, export};

struct Whoami(Peer);

impl Session for Whoami {
    fn new(peer: Peer) -> Self {
        Self(peer)
    }

    fn opened(&mut self) -> Answer {
        let peer = &self.0;
        let mut said = format!(
            "remote {}\nlocal {}\nlistener {}\n",
            peer.remote, peer.local, peer.listener
        );
        if let Some(tls) = &peer.tls {
            said += &format!("version {}\n", tls.version);
            for (word, value) in [
                ("server-name", &tls.server_name),
                ("protocol", &tls.protocol),
                ("subject", &tls.subject),
            ] {
                if let Some(value) = value {
                    said += &format!("{word} {value}\n");
                }
            }
        }
        Answer::send(said).finish()
    }

    fn received(&mut self, _bytes: Vec<u8>) -> Answer {
        // All is said.
        Answer::default().finish()
    }
}

export!(Whoami);
