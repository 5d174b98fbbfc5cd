// How far two pictures are apart.

/** Peak signal-to-noise ratio of two pictures of one size, in dB; infinite if they are equal. */
export function psnr(one, other) {
  const [a, b] = [pixels(one), pixels(other)];
  let sum = 0;
  for (let i = 0; i < a.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) sum += (a[i + channel] - b[i + channel]) ** 2;
  }
  return 10 * Math.log10(255 ** 2 / (sum / (0.75 * a.length)));
}

function pixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}
