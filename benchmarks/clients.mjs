// One npm client against a server: node clients.mjs NAME URL. Beside it lies the node_modules that it needs; clients.py
// copies it there. Ends with 1 and the reason where something doesn't work.
import { createRequire } from "node:module";

const [name, url] = process.argv.slice(2);
const dot = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==",
  "base64",
);
const check = (holds, what) => {
  if (!holds) throw new Error(what);
};

const clients = {
  "stable-diffusion-api": async () => {
    const require = createRequire(import.meta.url);
    const Api = require("stable-diffusion-api").default;
    const sharp = require("sharp");
    const { hostname, port } = new URL(url);
    const api = new Api({ host: hostname, port: Number(port), timeout: 600000 });
    const image = sharp({ create: { width: 64, height: 64, channels: 3, background: "red" } }).png();
    const small = { prompt: "a fox", steps: 2, width: 64, height: 64 };
    for (const made of [
      await api.txt2img(small),
      await api.txt2img({ ...small, enable_hr: true }),
      await api.img2img({ ...small, init_images: [image] }),
      await api.img2img({ ...small, init_images: [image], mask_image: image }),
      await api.extraSingle({ image, upscaler_1: "Lanczos", upscaling_resize: 2 }),
      await api.extraBatch({ images: [image, image], name_list: ["a", "b"], upscaler_1: "Lanczos" }),
      await api.ControlNet.detect({ controlnet_module: "none", controlnet_input_images: [image] }),
    ])
      check(made.images.length > 0, "a picture");
    await api.pngInfo(image);
    await api.setOptions(await api.getOptions());
    for (const list of ["Progress", "CmdFlags", "Samplers", "Upscalers", "SdModels", "Hypernetworks", "FaceRestorers"])
      await api[`get${list}`]();
    await api.ControlNet.getModels();
    await api.ControlNet.getModules();
  },
  openai: async () => {
    const { default: OpenAI } = await import("openai");
    const api = new OpenAI({ apiKey: "none", baseURL: `${url}/v1`, maxRetries: 0 });
    const made = await api.images.generate({ model: "gpt-image-1", prompt: "a fox" });
    check(made.data[0].b64_json, "a picture in base64");
    const events = [];
    const asked = { model: "gpt-image-1", prompt: "a fox", stream: true, partial_images: 1 };
    for await (const event of await api.images.generate(asked)) events.push(event.type);
    check(events.at(-1) === "image_generation.completed", "a stream");
    check((await api.models.retrieve("dall-e-3")).id === "dall-e-3", "a model by its name");
  },
  langchain: async () => {
    const { DallEAPIWrapper } = await import("@langchain/openai");
    const plain = { apiKey: "none", baseUrl: `${url}/v1` };
    const link = await new DallEAPIWrapper(plain).invoke("a fox");
    check((await fetch(link)).ok, "a link that opens");
    const text = await new DallEAPIWrapper({ ...plain, responseFormat: "b64_json" }).invoke("a fox");
    check(text.startsWith("iVBOR"), "a PNG");
  },
  vercel: async () => {
    const { createOpenAI } = await import("@ai-sdk/openai");
    const { generateImage } = await import("ai");
    const provider = createOpenAI({ apiKey: "none", baseURL: `${url}/v1` });
    const style = { openai: { style: "vivid" } };
    const asks = [
      { model: provider.image("dall-e-3"), prompt: "a fox", size: "1024x1024", providerOptions: style },
      { model: provider.image("gpt-image-1"), prompt: "a fox" },
      { model: provider.image("gpt-image-1"), prompt: { text: "a fox", images: [dot, dot] } },
    ];
    for (const ask of asks) check((await generateImage(ask)).images.length === 1, "a picture");
  },
};

try {
  await clients[name]();
} catch (error) {
  const reply = error.response ? JSON.stringify(error.response.data) : "";
  console.error(`${error.message} ${reply}`.slice(0, 400));
  process.exit(1);
}
process.exit(0);
