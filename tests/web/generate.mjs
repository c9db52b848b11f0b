// Opens an exported page in headless Chromium, loads the model, generates, prints what it did.
//
//   node generate.mjs <request.json
//
// stdin: {"url", "prompt", "count", "provider", "chromium", "timeout_s"}.
// stdout: {"ids", "text", "status": [after loading, after generating]} or {"error"}.

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const request = JSON.parse(readFileSync(0, "utf8"));
const timeout = (request.timeout_s ?? 60) * 1000;
// A machine without a GPU has SwiftShader's, which computes on the CPU.
const gpu = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
];
const browser = await chromium.launch({
  executablePath: request.chromium,
  args: [
    "--no-sandbox",
    ...(request.provider === "webgpu" ? [...gpu, "--use-vulkan=swiftshader"] : []),
  ],
});
const said = [];
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(timeout);
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  await page.goto(`${request.url}?provider=${request.provider ?? "wasm"}`);
  const status = page.locator("#status");
  const finished = async (word) => {
    await page.waitForFunction(
      (start) =>
        /^Failed/.test(document.getElementById("status").textContent) ||
        document.getElementById("status").textContent.startsWith(start) ||
        document.getElementById("output").dataset[start] !== undefined,
      word,
    );
    const text = await status.textContent();
    if (text.startsWith("Failed")) throw new Error(text);
    return text;
  };
  await page.click("#open button");
  const loaded = await finished("Loaded");
  await page.fill("#ask textarea", request.prompt);
  await page.fill("#ask [name=count]", String(request.count));
  await page.click("#ask button");
  const generated = await finished("ids");
  const output = page.locator("#output");
  console.log(
    JSON.stringify({
      ids: (await output.getAttribute("data-ids")).split(" ").map(Number),
      text: await output.textContent(),
      status: [loaded, generated],
    }),
  );
} catch (error) {
  console.log(JSON.stringify({ error: [error.message, ...said].join("\n") }));
} finally {
  await browser.close();
}
