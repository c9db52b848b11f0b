// Opens the chat page of mobile/web in headless Chromium, loads a package, talks, prints what came.
//
//   node chat.mjs <request.json
//   BCQ_SCREENSHOT=page.png node chat.mjs <request.json     # also writes the page at the end
//
// stdin: {"url", "chromium", "turns": [{"text", "count", "isChat", "stop", "stopAfterMs"}],
// "screenshot", "timeout_s"}; url names the package as ?model=.
// stdout: {"loaded": status, "turns": [{"ids", "text", "summary", "status"}]} or {"error"}.

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const request = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: request.chromium,
  args: ["--no-sandbox"],
});
const said = [];

/** Status of the page once it starts with `word`. */
async function statusOf(page, word) {
  await page.waitForFunction(
    (start) => new RegExp(`^(Failed|${start})`).test(document.getElementById("status").textContent),
    word,
  );
  const text = await page.locator("#status").textContent();
  if (text.startsWith("Failed")) throw new Error(text);
  return text;
}

async function talk(page, { text, count, isChat, stop, stopAfterMs }) {
  await page.fill("#ask textarea", text);
  await page.fill("#ask [name=maxTokens]", String(count));
  await page.fill("#ask [name=stop]", stop ?? "");
  await page.setChecked("#ask [name=chat]", isChat, { force: true });
  await page.evaluate(() => (document.getElementById("status").textContent = "Asked."));
  await page.click("#ask button:not([type])");
  if (stopAfterMs !== undefined) {
    await page.waitForTimeout(stopAfterMs);
    await page.click("#cancel");
  }
  const status = await statusOf(page, "Done");
  const answer = page.locator("#talk p.assistant").last();
  const ids = await answer.getAttribute("data-ids");
  return {
    ids: ids === "" ? [] : ids.split(" ").map(Number),
    text: await answer.textContent(),
    summary: JSON.parse(await answer.getAttribute("data-summary")),
    status,
  };
}

try {
  const page = await browser.newPage({ viewport: { width: 760, height: 640 } });
  page.setDefaultTimeout((request.timeout_s ?? 60) * 1000);
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  await page.goto(request.url);
  await page.click("#open button");
  const loaded = await statusOf(page, "Loaded");
  const turns = [];
  for (const turn of request.turns) turns.push(await talk(page, turn));
  const screenshot = request.screenshot ?? process.env.BCQ_SCREENSHOT;
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  console.log(JSON.stringify({ loaded, turns }));
} catch (error) {
  console.log(JSON.stringify({ error: [error.message, ...said].join("\n") }));
} finally {
  await browser.close();
}
