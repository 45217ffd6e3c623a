//! `weft sidecar`: the proxy beside one instance of a service.

use std::process::ExitCode;
use std::sync::Arc;

use weft_dataplane::discovery::Resolver;
use weft_dataplane::plan::services::INGRESS;
use weft_dataplane::{dial, node};
use weft_runtime::config::{Problems, watched};
use weft_sidecar::{Reporting, report};

use crate::config::{self, Checked, Reader};
use crate::pages;
use crate::role::{self, ProxyFlags};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service beside which it stands, by its name under `services`
    #[arg(long)]
    service: String,
    #[command(flatten)]
    flags: ProxyFlags,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let start = match role::start(
        &args.flags.flags,
        Reader::Sidecar {
            service: &args.service,
        },
    ) {
        Ok(start) => start,
        Err(code) => return code,
    };
    role::run(start, move |mut start, running| {
        let token = args.flags.token()?;
        let resolver = Arc::clone(&start.checked.resolver);
        let source = role::identity_source(&start.checked, &args.service, &resolver, token)?
            .ok_or("there is neither a CA nor an identity")?;
        let design = start
            .checked
            .sidecar
            .take()
            .ok_or("this file has no such sidecar")?;
        let (publisher, designs) = watched(design);
        pages::add(running, &start, &designs);
        let (service, host) = (args.service.clone(), start.host);
        role::follow(running, &start, publisher, move |name, base, text| {
            let checked = config::check(
                name,
                text,
                base,
                host,
                Reader::Sidecar { service: &service },
            )?;
            checked.sidecar.ok_or_else(Problems::new)
        });
        let reporting = reporting(&start.checked, &args.service, start.host, &resolver)?;
        let (process, size) = (running.process.clone(), args.flags.size());
        let held = process.drain.guard();
        let listening = node::not_listening(&process);
        let outbound_open = process.clone();
        Ok(async move {
            let Some(identity) = node::identity(&outbound_open, source).await else {
                return Ok(());
            };
            drop(held);
            weft_sidecar::run(
                process, size, resolver, designs, identity, reporting, listening,
            )
            .await
        })
    })
}

fn reporting(
    checked: &Checked,
    service: &str,
    host: Option<std::net::IpAddr>,
    resolver: &Arc<Resolver>,
) -> Result<Option<Reporting>, String> {
    let Some(collector) = &checked.file.collector else {
        return Ok(None);
    };
    let mut admin = checked.admin.address();
    if let Some(host) = host {
        admin.set_ip(host);
    }
    let settings = report::Settings {
        address: collector.address.clone(),
        interval: collector.interval.as_duration(),
        instance: format!("{service} at {admin}"),
        run: report::draw_run(),
    };
    let (resolver, address) = (Arc::clone(resolver), collector.address.clone());
    let dial: report::Dial = Arc::new(move || {
        let (resolver, address) = (Arc::clone(&resolver), address.clone());
        Box::pin(async move {
            let addresses = node::lookup(&resolver, &address).await?;
            let (stream, _) = dial::connect(&dial::interleave(addresses)).await?;
            Ok(stream)
        })
    });
    let collector = weft_dataplane::identity::SpiffeId::for_service(&checked.trust_domain, INGRESS)
        .map_err(|error| error.to_string())?;
    Ok(Some(Reporting {
        settings,
        collector,
        dial,
    }))
}
