//! The checks of the section `[mqtt]`.
//!
//! Deliberately opens no connection and reads no file of a certificate.

use super::{MqttKeys, Version};
use crate::config::key_error::{KeyError, KeyResult, within};
use crate::config::key_values::{topic_level, topic_levels};
use crate::config::{ClientCertificate, Device, Host, Login, Mqtt, MqttVersion, Tls, broker};

/// The name of the password's credential in the systemd unit.
const PASSWORD_CREDENTIAL: &str = "mqtt-password";

impl MqttKeys {
    pub(super) fn checked(mut self, device: &Device, host: &Host) -> KeyResult<Option<Mqtt>> {
        let version = self.version.take().map_or(Ok(MqttVersion::V5), Version::checked)?;
        let tls = self.encryption()?;
        let prefix = topic_levels(self.prefix.take(), "bitnetd", "prefix")?;
        let discovery = self.discovery.unwrap_or(true);
        let discovery_prefix =
            topic_levels(self.discovery_prefix.take(), "homeassistant", "discovery_prefix")?;
        let group = self.group.take();
        if let Some(group) = &group {
            check_group(group, device)?;
        }
        let login = self.login(host)?;
        let reply_topics = self.reply_topics.take().map(broker::reply_topics).transpose();
        let reply_topics = reply_topics.map_err(|reason| KeyError("mqtt", "reply_topics", reason))?;
        let Some(name) = self.host.filter(|host| !host.is_empty()) else {
            let set = [("username", login.is_some()), ("tls", tls.is_some()), ("group", group.is_some())];
            return match set.into_iter().find(|(_, is_set)| *is_set) {
                Some((key, _)) => {
                    let reason = format!("missing, though {key} is set; without a host there is no link");
                    Err(KeyError("mqtt", "host", reason))
                }
                None => Ok(None),
            };
        };
        let name = broker::address(&name).map_err(|reason| KeyError("mqtt", "host", reason))?;
        let usual = if tls.is_some() { 8883 } else { 1883 };
        let port = within("mqtt", "port", self.port.unwrap_or(usual).into(), 1..=65535)? as u16;
        let credentials = host.credentials_dir.clone();
        Ok(Some(Mqtt {
            host: name,
            port,
            prefix,
            version,
            group,
            login,
            tls,
            credentials,
            discovery,
            discovery_prefix,
            reply_topics,
            keep_last: self.keep_last.unwrap_or(false),
        }))
    }

    fn encryption(&mut self) -> KeyResult<Option<Tls>> {
        let files =
            [("ca_file", &self.ca_file), ("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        if self.tls != Some(true) {
            return match files.iter().find(|(_, file)| file.is_some()) {
                Some((key, _)) => {
                    let reason = "set, but nothing is encrypted; add tls = true, or take this key out";
                    Err(KeyError("mqtt", key, reason.into()))
                }
                None => Ok(None),
            };
        }
        let missing = |key, other| {
            let reason = format!("missing, though {other} is set; a client certificate needs both");
            Err(KeyError("mqtt", key, reason))
        };
        let client = match (self.cert_file.take(), self.key_file.take()) {
            (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
            (None, None) => None,
            (Some(_), None) => return missing("key_file", "cert_file"),
            (None, Some(_)) => return missing("cert_file", "key_file"),
        };
        Ok(Some(Tls { ca_file: self.ca_file.take(), client }))
    }

    fn login(&mut self, host: &Host) -> KeyResult<Option<Login>> {
        let Some(username) = self.username.take() else {
            if self.password_file.is_some() {
                let reason = "missing, though password_file is set; name the user too";
                return Err(KeyError("mqtt", "username", reason.into()));
            }
            return Ok(None);
        };
        let credential = host.credentials_dir.as_ref().map(|folder| folder.join(PASSWORD_CREDENTIAL));
        let password_file =
            self.password_file.take().or_else(|| credential.filter(|credential| credential.is_file()));
        Ok(Some(Login { username, password_file }))
    }
}

impl Version {
    fn checked(self) -> KeyResult<MqttVersion> {
        match self {
            Version::Number(5) | Version::Broken(5.0) => Ok(MqttVersion::V5),
            Version::Text(text) if text == "5" => Ok(MqttVersion::V5),
            Version::Text(text) if text == "3.1.1" => Ok(MqttVersion::V311),
            _ => Err(KeyError("mqtt", "version", "not known; use 5 or \"3.1.1\"".into())),
        }
    }
}

fn check_group(group: &str, device: &Device) -> KeyResult<()> {
    topic_level(group, "mqtt", "group")?;
    if *group == device.id {
        let reason = format!("\"{group}\" is device.id too, and both would share topics; choose another");
        return Err(KeyError("mqtt", "group", reason));
    }
    Ok(())
}
