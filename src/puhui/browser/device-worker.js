/**
 * Keeps the /device page so that it opens without a network. Experts are kept by puhui.js itself.
 *
 * The network goes first, so that the page is the node's own as long as the node is there.
 */

const page = new URL("../device", location).href;
const list = new URL("experts", location).href;
const KEPT = [page, list, ...["device.css", "device.js", "puhui.js"].map((name) => new URL(name, location).href)];
const PATIENCE_MS = 4000;

addEventListener("install", (event) => {
  const fresh = KEPT.map((url) => new Request(url, { cache: "reload" }));
  event.waitUntil(caches.open("puhui-page").then((cache) => cache.addAll(fresh)).then(() => skipWaiting()));
});

addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  const url = origin + pathname;
  if (event.request.method === "GET" && KEPT.includes(url)) event.respondWith(answered(event.request, url));
});

async function answered(request, url) {
  const cache = await caches.open("puhui-page");
  try {
    const response = await fetch(request, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) await cache.put(url, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(url);
    if (!kept) throw error;
    const headers = new Headers(kept.headers);
    headers.set("x-puhui-kept", "yes");
    return new Response(kept.body, { status: kept.status, headers });
  }
}
